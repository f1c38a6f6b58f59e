from __future__ import annotations

import fcntl
import os
import pickle

import pytest

from mla_opt.kernels.building import cuda_build
from tests.kernels.cuda.emulated import Emulator, build

# What is promised; of it the two whose kernels differ are compiled by `.ci/run`.
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
DIFFERENT = ("80", "90a")


@pytest.fixture(scope="session", autouse=True)
def current_library():
    """Nothing here runs the library of the CPU."""


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return Emulator(once(tmp_path_factory, "emulated", build))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(DIFFERENT, marks=pytest.mark.nvcc),
        pytest.param(ARCHITECTURES, marks=pytest.mark.sweep),
    ],
    ids=["two architectures", "all architectures"],
)
def architectures(request):
    """What `built` has code for."""
    return request.param


@pytest.fixture(scope="session")
def built(tmp_path_factory, architectures):
    """The library as nvcc makes it."""
    name = "compiled-" + "-".join(architectures)
    return once(tmp_path_factory, name, lambda folder: cuda_build.build_cuda(architectures, folder))


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
