from __future__ import annotations

import fcntl
import os
import pickle

import pytest

from mla_opt.kernels.building import cuda_build
from tests.kernels.cuda.emulated import Emulator, build

# What is promised.
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")


@pytest.fixture(scope="session", autouse=True)
def current_library():
    """Nothing here runs the library of the CPU."""


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return Emulator(once(tmp_path_factory, "emulated", build))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The library for every architecture."""
    return once(
        tmp_path_factory, "compiled", lambda folder: cuda_build.build_cuda(ARCHITECTURES, folder)
    )


def once(tmp_path_factory, name, make):
    """What ``make`` returns of a new folder: made by one of the processes that run tests."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    result = shared / f"{name}.pickle"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            (shared / name).mkdir()
            result.write_bytes(pickle.dumps(make(shared / name)))
    return pickle.loads(result.read_bytes())
