"""The operator once more, one query row and one key at a time; nothing of the reference is used."""

from __future__ import annotations

import math

import numpy as np


def naive_attention(feeds, *, scale, kv_lora_rank, causal):
    """Return (output, rows of each sequence after the new ones were put behind the past)."""
    query = feeds["query"]
    batch, heads, query_len, _ = query.shape
    output = np.zeros((batch, heads, query_len, kv_lora_rank))
    stored = [_rows(feeds, b) for b in range(batch)]
    for b, h, i in np.ndindex(batch, heads, query_len):
        rows = stored[b]
        last = len(rows) - query_len + i if causal else len(rows) - 1
        seen = [(t, _bias(feeds, b, h, i, t)) for t in range(len(rows)) if t <= last]
        logits = {
            t: scale * math.fsum(x * y for x, y in zip(query[b, h, i].tolist(), rows[t])) + bias
            for t, bias in seen
            if bias != -math.inf
        }
        if logits:
            output[b, h, i] = _mix(logits, rows, feeds, h, kv_lora_rank)
    return output, stored


def _rows(feeds, b):
    past = []
    if "cache" in feeds:
        parts = [feeds[name][b, 0] for name in ("cache", "rope_cache") if name in feeds]
        length = feeds["past_len"][b] if "past_len" in feeds else len(parts[0])
        past = [[x for part in parts for x in part[t].tolist()] for t in range(length)]
    return past + (feeds["latent"][b, 0].tolist() if "latent" in feeds else [])


def _bias(feeds, b, h, i, t):
    if "bias" not in feeds:
        return 0.0
    bias = feeds["bias"]
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    index = tuple(k if size > 1 else 0 for k, size in zip((b, h, i, t), bias.shape))
    if bias.dtype == bool:
        return 0.0 if bias[index] else -math.inf
    return float(bias[index])


def _mix(logits, rows, feeds, h, kv_lora_rank):
    sink = float(feeds["sink"][h]) if "sink" in feeds else -math.inf
    top = max([*logits.values(), sink])
    weights = {t: math.exp(logit - top) for t, logit in logits.items()}
    total = math.fsum(weights.values()) + math.exp(sink - top)
    return [
        math.fsum(weight * rows[t][c] for t, weight in weights.items()) / total
        for c in range(kv_lora_rank)
    ]
