"""``LatentAttention`` for PyTorch: importing this module registers it.

PyTorch does so itself, from 2.5 on, when it is imported (:mod:`mla_opt.operator.torch.autoload`).

    import torch

    output, new_cache, new_rope_cache = torch.ops.mla_opt.latent_attention(
        query, latent, cache, past_len, bias, sink, rope_cache, scale=0.135, kv_lora_rank=512)
    output = torch.ops.mla_opt.latent_attention_(
        query, latent, cache, past_len, scale=0.135, kv_lora_rank=512, causal=True)

``latent_attention`` is the contract (:mod:`mla_opt.operator.contract`) to the letter: its operands
in its order, absent ones None, and its attributes by name. It changes none of its operands: with
``past_len`` too the new caches are new tensors. Outputs that the contract has not for these
operands are tensors of the shape [0]. ``latent_attention_`` is its in-place form: it writes the new
rows into ``cache`` (and ``rope_cache``), which are buffers, and returns the output alone.

Both have no gradient and no batching rule: they are for inference, and say so when `backward` or
`torch.vmap` come upon them. Whatever else the contract refuses is an `mla_opt.InputError` that
names the operand; ``torch.compile`` wraps it into an error of its own.

On the CPU they run the compiled core, or, where it was not built, PyTorch's own operators. On CUDA
they run what :mod:`mla_opt.operator.torch.cuda` finds; on other devices PyTorch's own operators.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from mla_opt.operator.contract import DOMAIN
from mla_opt.operator.torch.refusals import refuse_vmap, without_gradient

NAME = "latent_attention"
NAME_IN_PLACE = "latent_attention_"

_ATTRIBUTES = "*, float scale, int kv_lora_rank, bool causal=False"
_SCHEMA = (
    "(Tensor query, Tensor? latent=None, Tensor? cache=None, Tensor? past_len=None, "
    f"Tensor? bias=None, Tensor? sink=None, Tensor? rope_cache=None, {_ATTRIBUTES}) "
    "-> (Tensor output, Tensor new_cache, Tensor new_rope_cache)"
)
_SCHEMA_IN_PLACE = (
    "(Tensor query, Tensor latent, Tensor(a!) cache, Tensor past_len, "
    f"Tensor? bias=None, Tensor? sink=None, Tensor(b!)? rope_cache=None, {_ATTRIBUTES}) "
    "-> Tensor"
)


def _kernel(path: str) -> Callable[..., Any]:
    """Return ``module.function``, which takes a checked call, as PyTorch calls a kernel.

    Its module is imported when it is first called: every import of PyTorch registers the operators,
    and few of them call one.
    """
    name, _, function = path.partition(".")

    @functools.cache
    def loaded() -> tuple[Callable[..., Any], Callable[[Any], Any]]:
        from mla_opt.operator.torch.call import make_call

        module = importlib.import_module(f"mla_opt.operator.torch.{name}")
        return make_call, getattr(module, function)

    def kernel(*operands: Any, **attributes: Any) -> Any:
        make_call, compute = loaded()
        return compute(make_call(*operands, **attributes))

    return kernel


def _register(name: str, schema: str, kernels: dict[str, str], fake: str) -> None:
    """Define an operator, its kernels by dispatch key, and what it says of shapes alone."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{DOMAIN}::{name}"
    for key, compute in kernels.items():
        _library.impl(name, _kernel(compute), key)
    operator = getattr(getattr(torch.ops, DOMAIN), name).default
    _library.impl(name, without_gradient(operator), "Autograd", with_keyset=True)
    torch.library.register_fake(qualified, _kernel(fake), lib=_library)
    torch.library.register_vmap(qualified, refuse_vmap, lib=_library)


# Its methods have no types that a checker could see.
_library: Any = torch.library.Library(DOMAIN, "DEF")  # type: ignore[no-untyped-call]
_register(
    NAME,
    _SCHEMA,
    {
        "CPU": "cpu.attend_cpu",
        "CUDA": "cuda.attend_cuda",
        "CompositeExplicitAutograd": "composite.attend_composite",
    },
    fake="call.empty_outputs",
)
_register(
    NAME_IN_PLACE,
    _SCHEMA_IN_PLACE,
    {
        "CPU": "cpu.attend_cpu_in_place",
        "CUDA": "cuda.attend_cuda_in_place",
        "CompositeExplicitAutograd": "composite.attend_composite_in_place",
    },
    fake="call.empty_output",
)
