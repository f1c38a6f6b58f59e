"""The expanded form by PyTorch's scaled_dot_product_attention.

    for some heads:   keys, values of all rows             MOST_NUMBERS numbers
      for each block: scaled_dot_product_attention --> zeros where a query sees nothing

Keys and values are of the query's type, as the models have them. A sink is one more key, of zeros
but for a dim of its own, whose value is zeros. On the CPU queries go by blocks, each with the keys
that it sees; elsewhere in one, since no value may be read there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mla_opt.operator.torch.call import Caches, Outputs, make_outputs, write_caches
from mla_opt.operator.torch.composite import stored
from mla_opt.operator.torch.multi_head.call import MultiHeadCall, empty_output
from mla_opt.operator.torch.multi_head.masks import Block, blocks, whole
from mla_opt.operator.torch.multi_head.rows import keys_and_values, latent_parts
from mla_opt.operator.torch.multi_head.weights import by_head

MOST_QUERIES = 512
"""Queries of a block: with more, more is computed that no query sees."""
MOST_NUMBERS = 1 << 25
"""Numbers of keys and values at a time; those of one head, if there are more."""


def rows_seen(call: MultiHeadCall) -> int:
    """Rows that some query may see: T, or of a buffer those of its longest sequence."""
    attention = call.attention
    if attention.past_len is None or attention.past_len.numel() == 0:
        return attention.total_len
    return max(1, int(attention.past_len.max()) + attention.new_len)


def attend_expanded(call: MultiHeadCall) -> Outputs:
    """Compute a checked call; the outputs are new tensors. No value of a tensor is read."""
    caches = stored(call.attention)
    output = _attend(call, caches, call.attention.total_len, [whole(call.attention)])
    return make_outputs(call.attention, output, caches)


def attend_expanded_in_place(call: MultiHeadCall) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    outputs = attend_expanded(call)
    write_caches(call.attention, outputs)
    return outputs.output


def attend_expanded_by_blocks(call: MultiHeadCall) -> Outputs:
    """Compute a call on the CPU whose lengths are valid; the outputs are new tensors."""
    caches, seen = stored(call.attention), rows_seen(call)
    cut = list(blocks(call.attention, seen, MOST_QUERIES))
    return make_outputs(call.attention, _attend(call, caches, seen, cut), caches)


def _attend(call: MultiHeadCall, caches: Caches, seen: int, cut: Sequence[Block]) -> Tensor:
    output = empty_output(call)
    if output.numel() == 0:
        return output
    c_kv, k_pe = latent_parts(call, caches, seen, call.query.dtype)
    dims = (call.query.shape[1], call.kv_lora_rank, call.qk_nope_head_dim)
    weights = by_head(call.weights, *dims, call.query.dtype)
    sink = call.attention.sink
    for heads in _some_heads(call, seen):
        keys, values = keys_and_values(c_kv, k_pe, weights[heads], call.qk_nope_head_dim)
        query, scale = call.query[:, heads], call.attention.scale
        if sink is not None:
            query, keys, values = _with_sink(sink[heads], query * scale, keys, values)
            scale = 1.0
        query, keys, values = _of_one_width(query, keys, values)
        for block in cut:
            found = _attend_block(query, keys, values, block.of_heads(heads), scale, sink)
            output[:, heads, block.rows] = found[..., : call.v_head_dim]
    return output


def _some_heads(call: MultiHeadCall, seen: int) -> list[slice]:
    """The heads, as many together as keys and values may have numbers."""
    batch, heads = call.query.shape[:2]
    width = 2 * call.query.shape[3] + call.qk_nope_head_dim + call.v_head_dim
    count = max(1, MOST_NUMBERS // (batch * seen * width))
    return [slice(start, min(start + count, heads)) for start in range(0, heads, count)]


def _attend_block(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block: Block,
    scale: float,
    sink: Tensor | None,
) -> Tensor:
    """Attend from a block of the query ``[B, H, S, N+R]`` to what it sees."""
    seen = block.seen if sink is None else 1 + block.seen
    output = functional.scaled_dot_product_attention(
        query[:, :, block.rows],
        keys[:, :, :seen],
        values[:, :, :seen],
        attn_mask=block.mask if sink is None else _shown_first(block.mask),
        is_causal=block.is_causal,
        scale=scale,
    )
    return output if block.blind is None else output.masked_fill(block.blind, 0.0)


def _of_one_width(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros behind the narrower ones, on the CPU.

    There PyTorch writes all scores to memory where keys and values differ in width: 2048 queries of
    16 heads of DeepSeek's widths took twice the time.
    """
    missing = keys.shape[3] - values.shape[3]
    if missing == 0 or query.device.type != "cpu":
        return query, keys, values
    if missing > 0:
        return query, keys, functional.pad(values, (0, missing))
    return functional.pad(query, (0, -missing)), functional.pad(keys, (0, -missing)), values


def _with_sink(
    sink: Tensor, query: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One more dim, which only one more key has, in front: it makes the sink that key's score."""
    batch, heads, queries, _ = query.shape
    of_query = sink.view(1, -1, 1, 1).expand(batch, heads, queries, 1)
    longer = functional.pad(keys, (0, 1, 1, 0))
    longer[:, :, 0, -1] = 1.0
    return torch.cat([query, of_query], dim=-1), longer, functional.pad(values, (0, 0, 1, 0))


def _shown_first(mask: Tensor | None) -> Tensor | None:
    """A mask with one more column in front, which all see."""
    if mask is None:
        return None
    return functional.pad(mask, (1, 0), value=1.0 if mask.dtype == torch.bool else 0.0)
