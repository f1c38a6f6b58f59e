"""DTensor and torchrun: heads and sequences on several processes, the numbers of one."""

from __future__ import annotations

import pytest

from tests.torchrun import check_under_torchrun


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.sweep)])
def test_the_numbers_of_the_whole(processes):
    check_under_torchrun("tests.torch_operator.sharded", processes)
