"""``LatentAttention`` for PyTorch: importing this module registers it.

    import torch
    import mla_opt.operator.torch.op

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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mla_opt.operator.contract import DOMAIN
from mla_opt.operator.torch.call import Call, check, empty_output, empty_outputs
from mla_opt.operator.torch.composite import attend_composite, attend_composite_in_place
from mla_opt.operator.torch.cpu import attend_cpu, attend_cpu_in_place
from mla_opt.operator.torch.cuda import attend_cuda, attend_cuda_in_place
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


def make_call(
    query: Tensor,
    latent: Tensor | None = None,
    cache: Tensor | None = None,
    past_len: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    rope_cache: Tensor | None = None,
    *,
    scale: float,
    kv_lora_rank: int,
    causal: bool = False,
) -> Call:
    """Return a call, checked."""
    operands = (query, latent, cache, past_len, bias, sink, rope_cache)
    call = Call(*operands, scale, kv_lora_rank, causal)
    check(call)
    return call


def _kernel(compute: Callable[[Call], Any]) -> Callable[..., Any]:
    """Return ``compute`` as PyTorch calls a kernel."""

    def kernel(*operands: Any, **attributes: Any) -> Any:
        return compute(make_call(*operands, **attributes))

    return kernel


def _register(
    name: str, schema: str, kernels: dict[str, Callable[[Call], Any]], fake: Callable[[Call], Any]
) -> None:
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
    {"CPU": attend_cpu, "CUDA": attend_cuda, "CompositeExplicitAutograd": attend_composite},
    fake=empty_outputs,
)
_register(
    NAME_IN_PLACE,
    _SCHEMA_IN_PLACE,
    {
        "CPU": attend_cpu_in_place,
        "CUDA": attend_cuda_in_place,
        "CompositeExplicitAutograd": attend_composite_in_place,
    },
    fake=empty_output,
)
