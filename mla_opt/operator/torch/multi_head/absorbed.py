"""The absorbed form: ``LatentAttention`` between the two products of each head.

[query_nope @ W_UK | query_rope] --> LatentAttention --> @ W_UV
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Call, Outputs
from mla_opt.operator.torch.multi_head.call import MultiHeadCall
from mla_opt.operator.torch.multi_head.weights import by_head


def attend_absorbed(call: MultiHeadCall, attend: Callable[[Call], Outputs]) -> Outputs:
    """Compute a checked call by ``attend``; the outputs are new tensors."""
    w_uk, w_uv = _matrices(call)
    outputs = attend(_inner(call, w_uk))
    return outputs._replace(output=_by_head(outputs.output, w_uv))


def attend_absorbed_in_place(call: MultiHeadCall, attend: Callable[[Call], Tensor]) -> Tensor:
    """Compute a checked call that has ``past_len`` by ``attend``, which writes its caches."""
    w_uk, w_uv = _matrices(call)
    return _by_head(attend(_inner(call, w_uk)), w_uv)


def _inner(call: MultiHeadCall, w_uk: Tensor) -> Call:
    """The attention to latent rows, with the absorbed query ``[B, H, S, C+R]``."""
    nope = call.qk_nope_head_dim
    latent = _by_head(call.query[..., :nope], w_uk)
    return call.attention._replace(query=torch.cat([latent, call.query[..., nope:]], dim=-1))


def _matrices(call: MultiHeadCall) -> tuple[Tensor, Tensor]:
    """``W_UK [H, N, C]`` and ``W_UV [H, C, V]``, of the query's type."""
    nope, heads = call.qk_nope_head_dim, call.query.shape[1]
    rows = by_head(call.weights, heads, call.kv_lora_rank, nope, call.query.dtype)
    return rows[:, :nope], rows[:, nope:].mT


def _by_head(rows: Tensor, matrices: Tensor) -> Tensor:
    """``[B, H, S, X]`` times ``[H, X, Y]``: one product a head, of all sequences."""
    batch, heads, queries, width = rows.shape
    of_head = rows.transpose(0, 1).reshape(heads, batch * queries, width)
    product = torch.bmm(of_head, matrices).view(heads, batch, queries, matrices.shape[2])
    return product.transpose(0, 1).contiguous()
