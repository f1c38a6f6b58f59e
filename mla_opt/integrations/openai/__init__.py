"""A server that OpenAI's clients understand, over a continuous batch.

    import uvicorn
    from mla_opt.integrations.openai import TransformersTokenizer, openai_app
    from mla_opt.runtimes.onnxruntime.batching import ContinuousBatch

    batch = ContinuousBatch.create("model.static.onnx", sequences=8, rows=4096)
    uvicorn.run(openai_app(batch, TransformersTokenizer("tokenizer"), "my-model"))

`openai_app` needs FastAPI, and uvicorn or another server for ASGI runs what it returns. Both come
with ``mla-opt[serve]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_opt.integrations.openai.app import openai_app
    from mla_opt.integrations.openai.text import Characters, Tokenizer, TransformersTokenizer

__all__ = ["Characters", "Tokenizer", "TransformersTokenizer", "openai_app"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: tokenizers need no FastAPI."""
    if name not in __all__:
        raise AttributeError(f"module 'mla_opt.integrations.openai' has no attribute {name!r}")
    from importlib import import_module

    home = "app" if name == "openai_app" else "text"
    return getattr(import_module(f"mla_opt.integrations.openai.{home}"), name)
