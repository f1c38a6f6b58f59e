"""Keys that a query may not see where sequences have lengths: those behind the last of each.

lengths [B] --> the last key of each sequence, or of each query if causal --> hidden [B, 1, S, T]
"""

from __future__ import annotations

import numpy as np

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


def behind_lengths(
    builder: Builder, lengths: Value, query: Value, keys: Value, *, causal: bool
) -> Value:
    """True for keys behind the last that a query sees: ``[B, 1, S, T]``, or ``[B, 1, 1, T]``.

    ``lengths [B]`` are the keys of each sequence, from the front of ``keys [B, H, T, D]``. If
    ``causal`` the queries ``[B, H, S, D]`` are the last tokens: query i sees those up to
    ``lengths - S + i``.
    """
    one = builder.constant(np.asarray([1]), "one_row")
    ends = builder.unsqueeze(builder.cast_like(lengths, one, "lengths"), 1, "ends")
    if causal:
        count = builder.dimension(query, 2)
        before = builder.subtract(ends, count, "rows_before")
        last = builder.add(before, builder.positions(count, "queries"), "last_seen")
    else:
        last = builder.subtract(ends, one, "last_seen")
    rows = builder.positions(builder.dimension(keys, 2), "rows")
    column = builder.unsqueeze(builder.unsqueeze(last, 2, "last_of_each"), 1, "by_head")
    return builder.greater(rows, column, "behind")
