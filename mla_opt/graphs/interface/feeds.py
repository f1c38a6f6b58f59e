"""Values of inputs that follow from which tokens are valid: masks and positions, by role.

``valid`` is ``[B, T]``, false where a row holds padding; a call brings the tokens ``start`` to T.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.graphs.interface.dims import Port

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


def positions(valid: Bools) -> npt.NDArray[np.int64]:
    """Return ``[B, T]``: how many valid tokens come before; padding counts as the one before it."""
    return np.maximum(np.cumsum(valid, axis=1, dtype=np.int64) - 1, 0)


def position_feed(
    port: Port, shape: tuple[int, ...], counted: npt.NDArray[np.int64], start: int
) -> Array:
    """Return positions of each row, or of the slots where one line of them serves all rows.

    ``counted`` is what `positions` gives for all tokens up to the last new one.
    """
    per_row = port.axis_of("batch") is not None
    values = counted[:, start:] if per_row else np.arange(start, counted.shape[1])
    return np.broadcast_to(values, shape).astype(numpy_dtype(port))


def start_feed(port: Port, shape: tuple[int, ...], start: int) -> Array:
    """Return the slot of the first new token."""
    return np.full(shape, start, numpy_dtype(port))


def mask_feed(port: Port, shape: tuple[int, ...], valid: Bools, start: int) -> Array:
    """Return the mask of one call, with as many dimensions as ``shape``."""
    if len(shape) == 2 and port.axis_of("query_len") is not None:
        return as_mask(port, visible(np.ones_like(valid[:1]), start)[0])
    if len(shape) == 2:
        return np.not_equal(valid, bool(port.hides)).astype(numpy_dtype(port))
    seen = visible(valid, start)
    if port.axis_of("query_len") is None:
        seen = seen[:, -1:]
    if len(shape) == 4:
        seen = seen[:, None]
    return as_mask(port, np.broadcast_to(seen, shape))


def visible(valid: Bools, start: int) -> Bools:
    """``[B, S, T]``: causal, and no padding but for a padding token's own sight of itself."""
    stop = valid.shape[1]
    queries, keys = np.arange(start, stop)[:, None], np.arange(stop)[None, :]
    causal, own = (keys <= queries)[None], (keys == queries)[None]
    seen: Bools = np.logical_or(np.logical_and(causal, valid[:, None, :]), own)
    return seen


def as_mask(port: Port, visible: Bools) -> Array:
    """Write ``visible`` as this kind of mask: additive for floats, true or 1 and 0 for others."""
    dtype = numpy_dtype(port)
    if dtype.kind in "biu":
        return np.not_equal(visible, bool(port.hides)).astype(dtype)
    return np.where(visible, 0.0, lowest(dtype)).astype(dtype)


def lowest(dtype: np.dtype[Any]) -> float:
    """What an additive mask of this type has where nothing may look."""
    return float(np.finfo(np.float16 if dtype.itemsize == 2 else np.float32).min)


def is_additive(port: Port) -> bool:
    """Whether a mask is added to scores: one of floats, but for one that tells tokens from padding.

    That one, of two dimensions and the same for every new token, has 1 for a token.
    """
    for_padding = port.rank == 2 and port.axis_of("query_len") is None
    return numpy_dtype(port).kind not in "biu" and not for_padding


def numpy_dtype(port: Port) -> np.dtype[Any]:
    """Return the element type of ``port``. Raises `InputError` where there is no NumPy type."""
    try:
        return np.dtype(port.dtype.numpy()) if port.dtype is not None else np.dtype(np.float32)
    except TypeError:
        raise InputError(f"input {port.name!r} is {port.dtype}, which cannot be fed") from None
