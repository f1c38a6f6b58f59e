"""Running optimized models: sessions, caches and generation, one package for each runtime.

    from mla_opt.runtimes import generate, load

    model = load("shipped")  # what `mla-opt export` wrote, or a program of PyTorch
    result = generate(model, [prompt, another], max_new_tokens=100, stop_tokens=[2])

The packages of the runtimes have more: growing caches, chunks of prompts, caches in files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_opt.runtimes.loading import LoadedModel, generate, load
    from mla_opt.runtimes.result import GenerationResult

__all__ = ["GenerationResult", "LoadedModel", "generate", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'mla_opt.runtimes' has no attribute {name!r}")
    from importlib import import_module

    home = "result" if name == "GenerationResult" else "loading"
    return getattr(import_module(f"mla_opt.runtimes.{home}"), name)
