"""Two processes that talk by gloo, each with a file of its own, say what one says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.exports.cache import ROOT

pytest.importorskip("torch")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_the_tokens_of_the_whole(processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "tests.tensor_parallel.two_processes"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
