"""Compiled kernels: where the library lies, and which instructions it uses.

The library is compiled when mla-opt is installed, if there is a C++ compiler; without it models run
by the function bodies that they carry. It holds `mla_opt::LatentAttention` for ONNX Runtime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(mla_opt.kernel_library()))

and the C ABI of ``cpu/latent_attention.h`` for other hosts.
"""

from __future__ import annotations

from mla_opt.kernels.library import (
    cpu_tier,
    cpu_tiers,
    has_matmul_nbits,
    kernel_available,
    kernel_library,
    use_cpu_tier,
)

__all__ = [
    "cpu_tier",
    "cpu_tiers",
    "has_matmul_nbits",
    "kernel_available",
    "kernel_library",
    "use_cpu_tier",
]
