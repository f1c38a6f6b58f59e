"""Two processes that talk by gloo, each with a file of its own, say what one says."""

from __future__ import annotations

import pytest

from tests.torchrun import check_under_torchrun

pytest.importorskip("torch")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_the_tokens_of_the_whole(processes: int) -> None:
    check_under_torchrun("tests.tensor_parallel.two_processes", processes)
