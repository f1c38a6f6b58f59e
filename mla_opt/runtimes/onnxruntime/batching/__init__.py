"""Serving: sequences join and leave a batch while others decode.

    from mla_opt.runtimes.onnxruntime.batching import ContinuousBatch, Sampling

    batch = ContinuousBatch.create("model.static.onnx", sequences=8, rows=4096)
    first = batch.add(prompt, Sampling(max_new_tokens=100, stop_tokens=[2]))
    while batch.running:
        for new in batch.step():
            print(new.sequence, new.token, new.finish_reason)

`AsyncBatch` is the same behind asyncio: requests wait for a place, and each gets its own stream.
"""

from __future__ import annotations

from mla_opt.runtimes.generation import Sampling
from mla_opt.runtimes.onnxruntime.batching.batch import ContinuousBatch
from mla_opt.runtimes.onnxruntime.batching.sequence import BatchFullError, BatchToken
from mla_opt.runtimes.onnxruntime.batching.service import AsyncBatch, TokenStream

__all__ = [
    "AsyncBatch",
    "BatchFullError",
    "BatchToken",
    "ContinuousBatch",
    "Sampling",
    "TokenStream",
]
