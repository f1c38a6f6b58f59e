"""``LatentAttention``, and the operator that holds its weights: importing this registers them.

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

``multi_head_latent_attention`` and ``multi_head_latent_attention_`` are the same two forms of
:mod:`mla_opt.operator.multi_head`: ``kv_b`` comes behind the query, its scales and zero points come
behind ``rope_cache``.

    output, new_cache, new_rope_cache = torch.ops.mla_opt.multi_head_latent_attention(
        query, kv_b, latent, cache, scale=0.07, kv_lora_rank=512, qk_nope_head_dim=128,
        v_head_dim=128, causal=True)

None has a gradient or a batching rule: they are for inference, and say so when `backward` or
`torch.vmap` come upon them. Whatever else the contract refuses is an `mla_opt.InputError` that
names the operand; ``torch.compile`` wraps it into an error of its own.

On the CPU they run the compiled core, or, where it was not built, PyTorch's own operators. On CUDA
they run what :mod:`mla_opt.operator.torch.cuda` finds, and for prompts PyTorch's own attention
(:mod:`mla_opt.operator.torch.multi_head.devices`); on other devices PyTorch's own operators.
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
MULTI_HEAD_NAME = "multi_head_latent_attention"
MULTI_HEAD_NAME_IN_PLACE = "multi_head_latent_attention_"

_FUNCTIONAL = (
    "Tensor? latent=None, Tensor? cache=None, Tensor? past_len=None, "
    "Tensor? bias=None, Tensor? sink=None, Tensor? rope_cache=None"
)
_IN_PLACE = (
    "Tensor latent, Tensor(a!) cache, Tensor past_len, "
    "Tensor? bias=None, Tensor? sink=None, Tensor(b!)? rope_cache=None"
)
_SCALES = "Tensor? kv_b_scales=None, Tensor? kv_b_zero_points=None, Tensor? kv_b_factors=None"
_ATTRIBUTES = "*, float scale, int kv_lora_rank, bool causal=False"
_MULTI_HEAD_ATTRIBUTES = (
    "*, float scale, int kv_lora_rank, int qk_nope_head_dim, int v_head_dim, bool causal=False, "
    'int bits=0, int block_size=0, int block_rows=1, str form="auto"'
)
_OUTPUTS = "(Tensor output, Tensor new_cache, Tensor new_rope_cache)"


def _of_attention(operands: str, outputs: str) -> str:
    return f"(Tensor query, {operands}, {_ATTRIBUTES}) -> {outputs}"


def _of_multi_head(operands: str, outputs: str) -> str:
    return (
        f"(Tensor query, Tensor kv_b, {operands}, {_SCALES}, {_MULTI_HEAD_ATTRIBUTES}) -> {outputs}"
    )


_MAKERS = {
    "": "mla_opt.operator.torch.call.make_call",
    "multi_head.": "mla_opt.operator.torch.multi_head.call.make_multi_head_call",
}
"""What makes a checked call of operands and attributes, by where its kernels are."""


def _kernel(path: str) -> Callable[..., Any]:
    """Return ``module.function``, which takes a checked call, as PyTorch calls a kernel.

    Its module is imported when it is first called: every import of PyTorch registers the operators,
    and few of them call one.
    """
    maker = _MAKERS["multi_head." if path.startswith("multi_head.") else ""]

    @functools.cache
    def loaded() -> tuple[Callable[..., Any], Callable[[Any], Any]]:
        return _function(maker), _function(f"mla_opt.operator.torch.{path}")

    def kernel(*operands: Any, **attributes: Any) -> Any:
        make_call, compute = loaded()
        return compute(make_call(*operands, **attributes))

    return kernel


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _register(name: str, schema: str, kernels: dict[str, str], fake: str) -> None:
    """Define an operator, its kernels by dispatch key, and what it says of shapes alone."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{DOMAIN}::{name}"
    for key, compute in kernels.items():
        _library.impl(name, _kernel(compute), key)
    operator = getattr(getattr(torch.ops, DOMAIN), name).default
    _library.impl(name, without_gradient(operator), "Autograd", with_keyset=True)
    torch.library.register_fake(qualified, _kernel(fake), lib=_library)
    torch.library.register_vmap(qualified, refuse_vmap(qualified), lib=_library)


# Its methods have no types that a checker could see.
_library: Any = torch.library.Library(DOMAIN, "DEF")  # type: ignore[no-untyped-call]
_register(
    NAME,
    _of_attention(_FUNCTIONAL, _OUTPUTS),
    {
        "CPU": "cpu.attend_cpu",
        "CUDA": "cuda.attend_cuda",
        "CompositeExplicitAutograd": "composite.attend_composite",
    },
    fake="call.empty_outputs",
)
_register(
    NAME_IN_PLACE,
    _of_attention(_IN_PLACE, "Tensor"),
    {
        "CPU": "cpu.attend_cpu_in_place",
        "CUDA": "cuda.attend_cuda_in_place",
        "CompositeExplicitAutograd": "composite.attend_composite_in_place",
    },
    fake="call.empty_output",
)
_register(
    MULTI_HEAD_NAME,
    _of_multi_head(_FUNCTIONAL, _OUTPUTS),
    {
        "CPU": "multi_head.cpu.attend_cpu",
        "CUDA": "multi_head.devices.attend_cuda",
        "CompositeExplicitAutograd": "multi_head.devices.attend_anywhere",
    },
    fake="multi_head.call.empty_outputs",
)
_register(
    MULTI_HEAD_NAME_IN_PLACE,
    _of_multi_head(_IN_PLACE, "Tensor"),
    {
        "CPU": "multi_head.cpu.attend_cpu_in_place",
        "CUDA": "multi_head.devices.attend_cuda_in_place",
        "CompositeExplicitAutograd": "multi_head.devices.attend_anywhere_in_place",
    },
    fake="multi_head.call.empty_output",
)
