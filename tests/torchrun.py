"""Modules of the tests that run in several processes, which talk by gloo."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.exports.cache import ROOT


def check_under_torchrun(module: str, processes: int) -> None:
    """Run a module in so many processes; what they assert has to hold in all of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", str(processes), "-m", module],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
