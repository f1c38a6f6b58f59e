"""The expanded form on the CPU by PyTorch's own operators: some heads and queries at a time.

    for some heads:       keys, values of all rows                            T (N + R + V) numbers
        for some queries: softmax(query @ keys^T) @ values, of what is seen   MOST_SCORES numbers

PyTorch's own attention on the CPU keeps the scores of all heads and queries where keys and values
differ in width, and computes those that no query sees. Sums are kept in float32, or float64 for
float64: types of 16 bits are widened.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Caches, Outputs, make_outputs, write_caches
from mla_opt.operator.torch.composite import stored, sum_type
from mla_opt.operator.torch.multi_head.call import MultiHeadCall, empty_output
from mla_opt.operator.torch.multi_head.masks import Block, blocks
from mla_opt.operator.torch.multi_head.rows import keys_and_values, latent_parts
from mla_opt.operator.torch.multi_head.weights import numbers

MOST_QUERIES = 256
"""Queries of a block: fewer do not fill a product, more compute more that no query sees."""
MOST_SCORES = 1 << 20
"""Scores that are in memory at a time; of one head and a block, if there are more."""


def rows_seen(call: MultiHeadCall) -> int:
    """Rows that some query may see: T, or of a buffer those of its longest sequence."""
    attention = call.attention
    if attention.past_len is None or attention.past_len.numel() == 0:
        return attention.total_len
    return max(1, int(attention.past_len.max()) + attention.new_len)


def attend_in_blocks(call: MultiHeadCall) -> Outputs:
    """Compute a checked call whose lengths are valid; the outputs are new tensors."""
    caches = stored(call.attention)
    return make_outputs(call.attention, _attend(call, caches), caches)


def attend_in_blocks_in_place(call: MultiHeadCall) -> Tensor:
    """Compute such a call that has ``past_len``, write its caches, and return the output."""
    outputs = attend_in_blocks(call)
    write_caches(call.attention, outputs)
    return outputs.output


def _attend(call: MultiHeadCall, caches: Caches) -> Tensor:
    output = empty_output(call)
    if output.numel() == 0:
        return output
    wide, seen = sum_type(call.attention), rows_seen(call)
    c_kv, k_pe = latent_parts(call, caches, seen, wide)
    rows = numbers(call.weights, call.kv_lora_rank, wide)
    weights = rows.view(call.query.shape[1], -1, call.kv_lora_rank)
    of_queries = list(blocks(call.attention, seen, MOST_QUERIES))
    for heads in _some_heads(call, seen):
        keys, values = keys_and_values(c_kv, k_pe, weights[heads], call.qk_nope_head_dim)
        query = call.query[:, heads].to(wide) * call.attention.scale
        sink = None if call.attention.sink is None else call.attention.sink[heads].to(wide)
        for block in of_queries:
            found = _attend_block(query, keys, values, block.of_heads(heads), sink)
            output[:, heads, block.rows] = found
    return output


def _some_heads(call: MultiHeadCall, seen: int) -> list[slice]:
    """The heads, as many together as scores may be in memory."""
    batch, heads, queries, _ = call.query.shape
    count = max(1, MOST_SCORES // (batch * min(queries, MOST_QUERIES) * seen))
    return [slice(start, min(start + count, heads)) for start in range(0, heads, count)]


def _attend_block(
    query: Tensor, keys: Tensor, values: Tensor, block: Block, sink: Tensor | None
) -> Tensor:
    """Attend from a block of the scaled query ``[B, H, S, N+R]`` to what it sees."""
    scores = query[:, :, block.rows] @ keys[:, :, : block.seen].mT
    block.apply(scores)
    output = torch.softmax(scores, dim=-1) @ values[:, :, : block.seen]
    if sink is not None:
        output *= _share_kept(scores, sink)
    return output if block.blind is None else output.masked_fill_(block.blind, 0.0)


def _share_kept(scores: Tensor, sink: Tensor) -> Tensor:
    """Part of the softmax that the sink leaves."""
    return torch.sigmoid(torch.logsumexp(scores, dim=-1, keepdim=True) - sink.view(1, -1, 1, 1))
