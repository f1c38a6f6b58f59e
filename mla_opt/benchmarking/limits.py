"""The attention's share of what the machine could do.

A step is more than its attention, but only the attention grows with the context. Between two
contexts everything else cancels: the further operations and bytes that the attention needs, over
the further time, are the rates that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.benchmarking.machine import Machine


@dataclass(frozen=True, slots=True)
class Load:
    """One measured step: operations and bytes of its attentions, and how long all of it took."""

    flops: float
    bytes: float
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What the attention reaches, and the share of the machine's measured rates that is.

    Attributes:
        gflops: 10^9 operations per second.
        gbps: 10^9 bytes per second, each row of the cache counted once.
    """

    gflops: float
    gbps: float
    share_of_arithmetic: float
    share_of_bandwidth: float


def rates(near: Load, far: Load, machine: Machine) -> Rates | None:
    """Rates of the attention between a shorter and a longer context; `None` where noise hides them.

    Smaller differences than a tenth of the shorter step count as noise.
    """
    seconds = (far.milliseconds - near.milliseconds) / 1e3
    if seconds <= 0.1 * near.milliseconds / 1e3:
        return None
    gflops = (far.flops - near.flops) / seconds / 1e9
    gbps = (far.bytes - near.bytes) / seconds / 1e9
    return Rates(gflops, gbps, gflops / machine.gemm_gflops, gbps / machine.read_gbps)
