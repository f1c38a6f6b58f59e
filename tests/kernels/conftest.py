from __future__ import annotations

import platform

import pytest

from mla_opt.kernels import cpu_tiers, use_cpu_tier
from mla_opt.kernels.building.build import LIBRARY, is_current


@pytest.fixture(scope="session", autouse=True)
def current_library():
    """What is tested is what the sources say."""
    assert is_current(LIBRARY), "the library is missing or old: run `python -m mla_opt.kernels`"


TIERS = {"aarch64": ("neon",), "x86_64": ("amx", "avx512bf16", "avx512", "avx2")}


@pytest.fixture(params=(*TIERS.get(platform.machine(), ()), "portable"))
def tier(request):
    """Every tier that this machine has."""
    if request.param not in cpu_tiers():
        pytest.skip(f"this machine has no {request.param}")
    use_cpu_tier(request.param)
    yield request.param
    use_cpu_tier(None)
