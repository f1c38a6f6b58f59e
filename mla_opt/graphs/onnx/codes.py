"""What is known of narrow numbers and of rows of them, whoever looks for some."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.handles import Array

#: Numbers are the same up to the rounding of what ran the model: of a product of the code and the
#: scale, and of another one of the zero point and the scale.
ROUNDING = 4e-7
#: Rows that are compared at once.
_ROWS = 4096

#: Types of a byte whose numbers mean something only with a scale.
BYTE_TYPES = (
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT8E5M2,
)


def nearest(keys: Array, wanted: Array) -> npt.NDArray[np.int64]:
    """Return the place of the nearest key for each of some numbers."""
    order = np.argsort(keys)
    right = np.clip(np.searchsorted(keys[order], wanted), 0, len(order) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.abs(keys[order[left]] - wanted) < np.abs(keys[order[right]] - wanted)
    return order[np.where(nearer, left, right)].astype(np.int64)


def are_same(stored: Array, rows: Array) -> bool:
    """Whether all numbers are the same, up to the rounding of the largest of their row."""
    starts = range(0, len(rows), _ROWS)
    return all(_are_same(stored[at : at + _ROWS], rows[at : at + _ROWS]) for at in starts)


def _are_same(stored: Array, rows: Array) -> bool:
    largest = np.abs(stored).max(axis=1, keepdims=True)
    return bool((np.abs(stored - rows) <= ROUNDING * largest).all())
