"""The attention's rates, from two contexts."""

from __future__ import annotations

import pytest

from mla_opt.benchmarking.limits import Load, rates
from mla_opt.benchmarking.machine import Machine

MACHINE = Machine("cpu", 2, 8.0, "Linux", "1.32", 2, gemm_gflops=100.0, read_gbps=10.0)


def test_what_is_common_to_both_contexts_cancels() -> None:
    near, far = Load(1e9, 1e8, 105.0), Load(3e9, 2e8, 125.0)
    reached = rates(near, far, MACHINE)
    assert reached is not None
    assert reached.gflops == pytest.approx(100.0)
    assert reached.share_of_arithmetic == pytest.approx(1.0)
    assert reached.gbps == pytest.approx(5.0)
    assert reached.share_of_bandwidth == pytest.approx(0.5)


@pytest.mark.parametrize("milliseconds", [90.0, 100.0, 105.0])
def test_a_difference_within_the_noise_says_nothing(milliseconds: float) -> None:
    assert rates(Load(1e9, 1e8, 100.0), Load(2e9, 2e8, milliseconds), MACHINE) is None
