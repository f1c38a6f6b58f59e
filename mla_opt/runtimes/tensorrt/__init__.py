"""Exported engines on a GPU: loading, latent caches on the device, generation.

    from mla_opt.runtimes.tensorrt import generate, load

    engines = load("engines")
    result = generate(engines, [prompt, another], max_new_tokens=100, stop_tokens=[2])
    result = generate(engines, [reply, reply], max_new_tokens=100, cache=result.cache)

Not yet run on a GPU: the tests run it on a stand-in for TensorRT and CUDA that computes with ONNX
Runtime. Needs `tensorrt` and `cuda-bindings`.
"""

from __future__ import annotations

from mla_opt.runtimes.tensorrt.cache import EngineCache
from mla_opt.runtimes.tensorrt.generation import generate
from mla_opt.runtimes.tensorrt.loading import Engines, load

__all__ = ["EngineCache", "Engines", "generate", "load"]
