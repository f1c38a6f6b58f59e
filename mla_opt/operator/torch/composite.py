"""The operator in PyTorch's own operators: for any device, and where there is no kernel.

    rows = cache with latent behind it, or written into it
    scores = scale * query @ rows^T + bias, -inf where a query row may not look
    output = softmax(scores [, sink]) @ c_kv

Sums are kept in float32, or float64 for float64: types of 16 bits are widened, which copies the
rows. It is the definition of :mod:`mla_opt.operator.reference` once more, at the speed of two
matrix products and without a value of a tensor being read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Caches, Call, Outputs, make_outputs, write_caches


def attend_composite(call: Call) -> Outputs:
    """Compute a checked call; the outputs are new tensors."""
    caches = stored(call)
    return make_outputs(call, _attend(call, _rows(call, caches)), caches)


def attend_composite_in_place(call: Call) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    outputs = attend_composite(call)
    write_caches(call, outputs)
    return outputs.output


def stored(call: Call) -> Caches:
    """Return the caches with the new rows in them; as they are without new rows."""
    if call.latent is None or call.cache is None:
        return call.cache, call.rope_cache
    latent = call.latent.to(call.cache.dtype)
    if call.rope_cache is None:
        return _store(call.cache, latent, call.past_len), None
    c_kv, k_pe = latent[..., : call.kv_lora_rank], latent[..., call.kv_lora_rank :]
    return (
        _store(call.cache, c_kv, call.past_len),
        _store(call.rope_cache, k_pe, call.past_len),
    )


def _store(cache: Tensor, new: Tensor, past_len: Tensor | None) -> Tensor:
    if past_len is None:
        return torch.cat([cache, new], dim=2)
    offsets = torch.arange(new.shape[2], device=cache.device)
    targets = past_len[:, None].to(torch.int64) + offsets
    return cache.scatter(2, targets[:, None, :, None].expand(new.shape), new).contiguous()


def _rows(call: Call, caches: Caches) -> Tensor:
    """Return the rows to attend to, [B, T, C+R], in the type that sums have."""
    parts = [part for part in caches if part is not None]
    if call.cache is None and call.latent is not None:
        parts = [call.latent]
    wide = [part.to(sum_type(call)) for part in parts]
    return (wide[0] if len(wide) == 1 else torch.cat(wide, dim=-1)).squeeze(1)


def _attend(call: Call, rows: Tensor) -> Tensor:
    batch, heads, query_len, _ = call.query.shape
    # One product for each sequence instead of one for each head.
    folded = (call.query.to(rows.dtype) * call.scale).flatten(1, 2)
    scores = (folded @ rows.mT).view(batch, heads, query_len, rows.shape[1])
    weights = _softmax(_masked(call, scores), call.sink)
    output = weights.flatten(1, 2) @ rows[..., : call.kv_lora_rank]
    return output.view(batch, heads, query_len, call.kv_lora_rank).to(call.query.dtype)


def _masked(call: Call, scores: Tensor) -> Tensor:
    if call.bias is not None and call.bias.dtype != torch.bool:
        scores = scores + call.bias
    elif call.bias is not None:
        scores = scores.masked_fill(~call.bias, float("-inf"))
    last = last_columns(call)
    if last is None:
        return scores
    columns = torch.arange(scores.shape[3], device=scores.device)
    return scores.masked_fill(columns > last, float("-inf"))


def last_columns(call: Call) -> Tensor | None:
    """Return the last column that each row may see, [B or 1, 1, S or 1, 1]; None: all of them."""
    query_len, device = call.query.shape[2], call.query.device
    if call.past_len is None and not call.causal:
        return None
    if call.past_len is None:
        valid = torch.full((1,), call.total_len, device=device)
    else:
        valid = call.past_len.to(torch.int64) + call.new_len
    if not call.causal:
        return valid.view(-1, 1, 1, 1) - 1
    offsets = torch.arange(query_len, device=device) - query_len
    return valid.view(-1, 1, 1, 1) + offsets.view(1, 1, -1, 1)


def _softmax(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Softmax over the last axis and the sink; zeros for a row of -inf only."""
    top = scores.amax(dim=-1, keepdim=True)
    logit = None if sink is None else sink.to(scores.dtype).view(1, -1, 1, 1)
    if logit is not None:
        top = torch.maximum(top, logit)
    top = top.masked_fill(top == float("-inf"), 0.0)
    weights = torch.exp(scores - top)
    total = weights.sum(dim=-1, keepdim=True)
    if logit is not None:
        total = total + torch.exp(logit - top)
    return weights / total.masked_fill(total == 0.0, 1.0)


def sum_type(call: Call) -> torch.dtype:
    """Return the type that sums are kept in."""
    return torch.float64 if call.query.dtype == torch.float64 else torch.float32
