"""The product with one matrix per head, with heads in the place of sequences.

    [B, H, S, X] --> [H, B S, X] --> @ [H, X, Y] --> [H, B S, Y] --> [B, H, S, Y]

TensorRT repeats the matrices of a broadcast product for every sequence, in every step; this way it
reads them as they are stored.
"""

from __future__ import annotations

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


def heads_first(builder: Builder, rows: Value, matrices: Value, name: str) -> Value:
    """``rows [B, H, S, X]`` times ``matrices [H, X, Y]``: ``[B, H, S, Y]``."""
    swapped = builder.transpose(rows, (1, 0, 2, 3), f"{name}_heads_first")
    flat = builder.reshape(swapped, _shape(builder, rows, flat=True), f"{name}_rows")
    product = builder.matmul(flat, matrices, name)
    split = builder.reshape(product, _shape(builder, rows, flat=False), f"{name}_split")
    return builder.transpose(split, (1, 0, 2, 3), f"{name}_by_head")


def _shape(builder: Builder, rows: Value, *, flat: bool) -> Value:
    """``[H, B S, -1]``, or ``[H, B, S, -1]``; what B and S are is read off ``rows``."""
    batch, heads, new = (builder.dimension(rows, axis) for axis in range(3))
    inner = (builder.multiply(batch, new, "rows_of_head"),) if flat else (batch, new)
    return builder.concat((heads, *inner, builder.integers(-1)), 0, "heads_first_shape")
