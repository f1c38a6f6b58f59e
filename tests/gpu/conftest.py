from __future__ import annotations

import pytest

from tests.gpu.driver import Device, device_reason
from tests.gpu.kernels import Runner, library_for

REASON = device_reason()


def pytest_collection_modifyitems(items):
    if REASON is None:
        return
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def runner():
    device = Device()
    return Runner(device, library_for(device))
