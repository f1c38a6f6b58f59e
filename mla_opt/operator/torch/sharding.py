"""How DTensor may cut the operators up: by heads, by sequences, or not at all.

    operand                           by heads             by sequences
    query [B, H, S, C+R]              H                    B
    latent, cache, rope_cache         whole everywhere     B
    past_len [B]                      whole everywhere     B
    bias, rank 1 to 4                 H, if it has one     B, if it has one
    sink [H]                          H                    whole everywhere
    kv_b [H (N+V), C], its scales     the rows of heads    whole everywhere
    kv_b_factors [2, C]               whole everywhere     whole everywhere
    output [B, H, S, C]               H                    B
    new_cache, new_rope_cache         whole everywhere     B

By heads is tensor parallelism: every process keeps the whole latent cache, which is the price of
its being one for all heads, and an ``o_proj`` that is split by rows sums up what the heads gave.
Each dimension of a mesh is cut on its own, so that both can be had. Numbers of heads and sequences
that a mesh does not divide are not cut; nor are weights by heads, where heads share a scale.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE

_OPERANDS, _MULTI_HEAD_OPERANDS = 7, 11


@functools.cache
def register_sharding() -> None:
    """Teach DTensor the operators; once is enough, in every process.

    For ``torch.ops.mla_opt.latent_attention`` and ``multi_head_latent_attention``. DTensor cannot
    call the in-place forms, whose first operand is not the one that they change: there it is
    refused.
    """
    import torch
    from torch.distributed.tensor.experimental import register_sharding as register

    import mla_opt.operator.torch.op  # noqa: F401

    register(torch.ops.mla_opt.latent_attention.default)(_shardings)
    register(torch.ops.mla_opt.latent_attention_.default)(_refuse)
    register(torch.ops.mla_opt.multi_head_latent_attention.default)(_multi_head_shardings)
    register(torch.ops.mla_opt.multi_head_latent_attention_.default)(_refuse)


def _shardings(*operands: Any, **attributes: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return (placements of the outputs, placements of the operands) for one mesh dimension."""
    given = [*operands, *[None] * (_OPERANDS - len(operands))]
    return [(out, _present(into, operands)) for out, into in _of_attention(given)]


def _of_attention(given: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """The same for all operands, absent ones too: whole, by heads, by sequences."""
    from torch.distributed.tensor import Replicate, Shard

    whole, written = Replicate(), given[1] is not None and given[2] is not None
    by_head = [Shard(1), whole, whole, whole, _bias_placement(given[4], 1), Shard(0), whole]
    by_sequence = [Shard(0)] * 4 + [_bias_placement(given[4], 0), whole, Shard(0)]
    new = [Shard(0) if written else whole, Shard(0) if written and given[6] is not None else whole]
    return [
        ([whole, whole, whole], [whole] * _OPERANDS),
        ([Shard(1), whole, whole], by_head),
        ([Shard(0), *new], by_sequence),
    ]


def _multi_head_shardings(*operands: Any, **attributes: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return the same for the operator that holds its weights."""
    from torch.distributed.tensor import Replicate, Shard

    given = [*operands, *[None] * (_MULTI_HEAD_OPERANDS - len(operands))]
    of_weights = [Replicate(), Shard(0), Replicate()]
    found = []
    for (out, into), rows in zip(_of_attention([given[0], *given[2:8]]), of_weights):
        placements = [into[0], rows, *into[1:], rows, rows, Replicate()]
        found.append((out, _present(placements, operands)))
    rows_of_head = attributes["qk_nope_head_dim"] + attributes["v_head_dim"]
    # A mesh that cuts rows of weights elsewhere than between heads would give heads other weights.
    if rows_of_head % attributes.get("block_rows", 1) or given[0].shape[1] % given[0].mesh.size():
        del found[1]
    return found


def _present(placements: list[Any], operands: tuple[Any, ...]) -> list[Any]:
    return [
        None if operand is None else placement for placement, operand in zip(placements, operands)
    ]


def _bias_placement(bias: Any, axis: int) -> Any:
    """Return the placement of a bias where ``axis`` of [B, H, S, T] is cut."""
    from torch.distributed.tensor import Replicate, Shard

    if bias is None:
        return Replicate()
    shape = bias.tensor_meta.shape
    own = axis - (4 - len(shape))
    return Shard(own) if own >= 0 and shape[own] > 1 else Replicate()


def _refuse(*operands: Any, **attributes: Any) -> NoReturn:
    raise InputError(
        f"{OP_TYPE}: the in-place form takes no DTensor; call the one that returns new caches, or"
        " pass it local tensors"
    )
