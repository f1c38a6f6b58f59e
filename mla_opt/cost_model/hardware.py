"""Machines as the cost model sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine as the cost model sees it.

    Attributes:
        name: what a person calls it.
        flops: floating-point operations per second, a multiplication and an addition being two.
        bandwidth: bytes per second from main memory.
        launch_seconds: fixed cost of one operator or kernel.
    """

    name: str
    flops: float
    bandwidth: float
    launch_seconds: float


# The CPU was measured: two AVX-512 (Zen 5) cores, fp32 FMA 521 GFLOP/s, reads 80 GB/s; the smallest
# MatMul node in ONNX Runtime 1.32 takes 0.28 microseconds. The GPUs are vendor sheets (dense bf16,
# HBM): H100 SXM 989 TFLOP/s and 3.35 TB/s, H200 the same compute and 4.8 TB/s; derated to what
# published kernels reach (790 TFLOP/s, 90% of the bandwidth). A launch outside a CUDA graph costs
# 2 to 4 microseconds.
HARDWARE: dict[str, Hardware] = {
    "cpu": Hardware("2-core AVX-512 CPU", 521e9, 80e9, 0.28e-6),
    "h100": Hardware("NVIDIA H100 SXM", 790e12, 3.0e12, 3e-6),
    "h200": Hardware("NVIDIA H200", 790e12, 4.3e12, 3e-6),
}

DEFAULT_HARDWARE = HARDWARE["cpu"]
