"""Saved programs of PyTorch that mla-opt has optimized: loading, caches, generation.

    from mla_opt.runtimes import generate, load

    result = generate(load("model.mla.pt2"), [prompt, another], max_new_tokens=100)

Loading a program can run code that is in it: load only what you trust.
"""

from __future__ import annotations

from mla_opt.runtimes.torch.cache import ProgramCache
from mla_opt.runtimes.torch.program import LoadedProgram, load_program

__all__ = ["LoadedProgram", "ProgramCache", "load_program"]
