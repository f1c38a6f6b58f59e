"""The float64 reference with its products as large matrix products: the same, many times faster.

Everything else is the reference's own; tests/kernels/cuda compares the two.
"""

from __future__ import annotations

import numpy as np

from mla_opt.operator import reference
from tests.kernels.cuda.problems import Arrays, Case


def expected(case: Case, arrays: Arrays) -> Arrays:
    """The outputs, as `tests.kernels.cuda.problems.expected` gives them."""
    query = arrays["query"].astype(np.float64)
    batch, heads, query_len, width = query.shape
    rope_cache = arrays.get("rope_cache")
    past = reference._packed(arrays.get("cache"), rope_cache, case.rope)
    lengths = arrays.get("past_len")
    seen, updated = reference._store(batch, arrays.get("latent"), past, lengths)
    folded = query.reshape(batch, heads * query_len, width)
    scores = case.scale * (folded @ seen.rows.swapaxes(1, 2))
    scores = scores.reshape(batch, heads, query_len, -1)
    if "bias" in arrays:
        scores = scores + reference._bias(arrays["bias"], scores.shape)
    allowed = reference._allowed(scores.shape, seen.valid, case.causal)
    weights = reference._softmax(np.where(allowed, scores, -np.inf), arrays.get("sink"))
    weights = weights.reshape(batch, heads * query_len, -1)
    output = (weights @ seen.rows[..., : case.rank]).reshape(batch, heads, query_len, case.rank)
    caches = reference._unpacked(updated, arrays.get("cache"), rope_cache)
    named = zip(("output", "new_cache", "new_rope_cache"), (output, *caches))
    return {name: value for name, value in named if value is not None}
