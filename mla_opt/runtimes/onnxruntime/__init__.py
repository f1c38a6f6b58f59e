"""Optimized models in ONNX Runtime: sessions with the kernel, latent caches, generation.

    from mla_opt.runtimes.onnxruntime import LatentCache, generate, session

    opened = session("model.mla.onnx")
    result = generate(opened, [prompt, another], max_new_tokens=100, stop_tokens=[2])
    result = generate(opened, [reply, reply], max_new_tokens=100, cache=result.cache)

`generate` takes any decoder with a cache, so that a model can be compared with what it was made
from; a `LatentCache` is for optimized ones. Caches lie in the memory of the CPU.

`mla_opt.runtimes.onnxruntime.batching` serves requests that come and go, and
`mla_opt.runtimes.onnxruntime.ranks` runs one rank of a tensor-parallel model.
"""

from __future__ import annotations

from mla_opt.runtimes.onnxruntime.cache import LatentCache
from mla_opt.runtimes.onnxruntime.generation import generate
from mla_opt.runtimes.onnxruntime.sessions import session
from mla_opt.runtimes.result import GenerationResult

__all__ = ["GenerationResult", "LatentCache", "generate", "session"]
