"""The expanded form by PyTorch's scaled_dot_product_attention: for any device, no value is read.

    keys, values of all heads --> scaled_dot_product_attention --> zeros where a query sees nothing

Keys and values are of the query's type, as the models have them. A sink is one more key, of zeros
but for a dim of its own, whose value is zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mla_opt.operator.torch.call import Call, Outputs, make_outputs, write_caches
from mla_opt.operator.torch.composite import last_columns, stored
from mla_opt.operator.torch.multi_head.call import MultiHeadCall
from mla_opt.operator.torch.multi_head.rows import keys_and_values, latent_parts
from mla_opt.operator.torch.multi_head.weights import numbers


def attend_expanded(call: MultiHeadCall) -> Outputs:
    """Compute a checked call; the outputs are new tensors."""
    attention = call.attention
    caches = stored(attention)
    rows = latent_parts(call, caches, attention.total_len, call.query.dtype)
    return make_outputs(attention, _attend(call, *rows), caches)


def attend_expanded_in_place(call: MultiHeadCall) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    outputs = attend_expanded(call)
    write_caches(call.attention, outputs)
    return outputs.output


def _attend(call: MultiHeadCall, c_kv: Tensor, k_pe: Tensor) -> Tensor:
    attention, nope = call.attention, call.qk_nope_head_dim
    rows = numbers(call.weights, call.kv_lora_rank, call.query.dtype)
    weights = rows.view(call.query.shape[1], -1, call.kv_lora_rank)
    keys, values = keys_and_values(c_kv, k_pe, weights, nope)
    if _is_square(attention):
        return functional.scaled_dot_product_attention(
            call.query, keys, values, is_causal=attention.causal, scale=attention.scale
        ).contiguous()
    mask, blind = _mask(attention)
    query, scale = call.query, attention.scale
    if attention.sink is not None:
        query, keys, values, mask = _with_sink(attention.sink, query * scale, keys, values, mask)
        scale = 1.0
    output = functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=scale
    )
    return output.contiguous() if blind is None else output.masked_fill(blind, 0.0)


def _is_square(call: Call) -> bool:
    """Whether no mask is needed: all is seen, or what is_causal means, which aligns top left."""
    if call.bias is not None or call.sink is not None or call.past_len is not None:
        return False
    return not call.causal or call.total_len == call.query.shape[2]


def _mask(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to scores, or which of them count, and which queries see nothing.

    Those see everything instead: no backend is asked for a softmax of nothing.
    """
    seen = _seen(call)
    additive = call.bias is not None and call.bias.dtype != torch.bool
    if call.bias is not None:
        allowed = call.bias > float("-inf") if additive else call.bias
        seen = allowed if seen is None else seen & allowed
    if seen is None:
        return None, None
    seen = seen[(None,) * (4 - seen.dim())]
    blind = ~seen.any(dim=-1, keepdim=True)
    if not additive:
        return seen | blind, blind
    assert call.bias is not None
    mask = call.bias.masked_fill(~seen, float("-inf"))
    return mask.masked_fill(blind, 0.0), blind


def _seen(call: Call) -> Tensor | None:
    """Return the columns that each row may see without the bias; None: all of them."""
    last = last_columns(call)
    if last is None:
        return None
    return torch.arange(call.total_len, device=last.device) <= last


def _with_sink(
    sink: Tensor, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One more dim, which only one more key has: it makes the sink that key's score."""
    batch, heads, queries, _ = query.shape
    of_query = sink.view(1, -1, 1, 1).expand(batch, heads, queries, 1)
    longer = functional.pad(keys, (0, 1, 0, 1))
    longer[:, :, -1, -1] = 1.0
    if mask is not None:
        shown = 1.0 if mask.dtype == torch.bool else 0.0
        mask = functional.pad(mask.expand(*mask.shape[:3], keys.shape[2]), (0, 1), value=shown)
    return (
        torch.cat([query, of_query], dim=-1),
        longer,
        functional.pad(values, (0, 0, 0, 1)),
        mask,
    )
