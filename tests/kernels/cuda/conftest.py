from __future__ import annotations

import pytest

from tests.kernels.cuda.emulated import Emulator, build


@pytest.fixture(scope="session", autouse=True)
def current_library():
    """Nothing here runs the library of the CPU."""


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    return Emulator(build(tmp_path_factory.mktemp("cuda")))
