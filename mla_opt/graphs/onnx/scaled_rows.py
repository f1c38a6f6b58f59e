"""Codes in a file whose multiples some rows are, whatever has multiplied them on the way.

    wanted[w, c] = scale[w, c / block] * code[place[w], c]

Found are integers and narrow floats that reach the rows by other operators than those that
:mod:`mla_opt.graphs.onnx.stored_rows` reads: by a Cast and a Mul, by blocks of several rows, or
with a positive factor of each row behind them. Nothing is taken for granted: rows are told by the
direction of their first numbers, then every number is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.graphs.onnx.codes import BYTE_TYPES, ROUNDING, are_same, nearest
from mla_opt.handles import Array
from mla_opt.operator.kv_b import PLAIN, KvB, Storage

_TYPES = (*BYTE_TYPES, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: Numbers at the start of a row by whose direction it is known again: they share a scale.
_START = 16
#: How far directions are apart at most, of rows of which one is a multiple of the other.
_APART = 1e-4
#: Numbers that share a scale, tried from the most on; 0: those of a whole row.
_BLOCKS = (0, 256, 128, 64, 32, 16)


Loader = Callable[[], KvB]
"""Reads rows of a file, which take memory only while they are looked at."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Rows of a file, ``[any, C]``: codes without scales, or with those that they have."""

    load: Loader
    columns: int

    @functools.cached_property
    def directions(self) -> Array:
        """Those of all rows."""
        kept = self.load()
        if kept.scales is None:
            return _directions(kept.codes[:, :_START].astype(np.float64))
        return _directions(kept.numbers(self.columns))

    def multiples(self, rows: Array, factors: Array | None = None) -> KvB | None:
        """Return ``rows [W, C]`` as multiples of rows of it; None where they are none.

        With ``factors [C]`` the columns of its rows are multiplied by those, too.
        """
        if np.abs(self.directions - _directions(_without(rows[:1], factors))).min() > _APART:
            return None  # few numbers tell of most matrices that they are others
        wanted = _without(rows, factors)
        directions = _directions(wanted)
        places = nearest(self.directions, directions)
        if (np.abs(self.directions[places] - directions) > _APART).any():
            return None
        taken = self.load().take(places)
        made = _with_factors if taken.scales is not None else _with_scales
        return made(taken, wanted)


def _without(rows: Array, factors: Array | None) -> Array:
    """Rows whose columns are not multiplied by factors."""
    wide = rows.astype(np.float64)
    return wide if factors is None else wide / factors


def stored_codes(model: ir.Model) -> list[ir.TensorProtocol]:
    """Every stored matrix of a type that codes have."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return [
        tensor
        for tensor in tensors
        if tensor is not None and tensor.dtype in _TYPES and len(tensor.shape) == 2
    ]


def code_matrices(
    tensors: Iterable[ir.TensorProtocol], columns: int, width: int
) -> Iterator[Candidate]:
    """Those with rows, or columns, of this many codes of less than ``width`` bytes.

    Others take no less memory than the rows themselves.
    """
    for tensor in tensors:
        if tensor.dtype.itemsize >= width:
            continue
        for turned in (False, True):
            if tensor.shape[0 if turned else 1] == columns:
                yield Candidate(functools.partial(_codes, tensor, turned), columns)


def _codes(tensor: ir.TensorProtocol, turned: bool) -> KvB:
    """The content of a matrix, or of its transpose, as codes without scales."""
    content = np.asarray(tensor.numpy())
    return KvB(PLAIN, content.T if turned else content)


def _with_scales(codes: KvB, wanted: Array) -> KvB | None:
    """Give codes the scales that make them what is wanted, as few as can be."""
    columns = wanted.shape[1]
    numbers = codes.numbers(columns)
    if codes.codes.dtype.itemsize > 1 and are_same(numbers, wanted):
        return codes  # 16-bit numbers may go without scales
    for width in (block or columns for block in _BLOCKS):
        scales = None if width > columns else _ratios(numbers, wanted, width)
        if scales is None:
            continue
        kept = KvB(Storage(block_size=width), codes.codes, scales)
        if are_same(kept.numbers(columns), wanted):
            return kept.sharing_rows(8 * ROUNDING)
    return None


def _with_factors(taken: KvB, wanted: Array) -> KvB | None:
    """Multiply the scales of each row by the factor that makes it what is wanted."""
    columns = wanted.shape[1]
    factors = _ratios(taken.numbers(columns), wanted, columns)
    if factors is None or taken.scales is None:
        return None
    if (np.abs(factors - 1.0) <= 2 * ROUNDING).all():
        return taken if are_same(taken.numbers(columns), wanted) else None
    scales = (taken.scales.astype(np.float64) * factors).astype(np.float32)
    zeros = taken.zero_points
    if zeros is not None and taken.storage.bits and taken.storage.zero_points == "plain":
        zeros = zeros.astype(np.float32)  # of the type of the scales
    kept = KvB(taken.storage, taken.codes, scales, zeros)
    return kept if are_same(kept.numbers(columns), wanted) else None


def _directions(rows: Array) -> Array:
    """Return a number for each row that its multiples have, too, and others hardly ever."""
    starts = rows[:, :_START]
    probe = np.random.default_rng(0).standard_normal(starts.shape[1])
    lengths = np.linalg.norm(starts, axis=1)
    found: Array = (starts @ probe) / np.where(lengths == 0, 1.0, lengths)
    return found


def _ratios(codes: Array, wanted: Array, width: int) -> npt.NDArray[np.float32] | None:
    """Return what each block was multiplied with, by its largest code: ``[W, blocks]``."""
    padding = ((0, 0), (0, -codes.shape[1] % width))
    blocks, made = (np.pad(x, padding).reshape(len(x), -1, width) for x in (codes, wanted))
    largest = np.abs(blocks).argmax(axis=2)[:, :, None]
    top, factor = (np.take_along_axis(x, largest, axis=2)[:, :, 0] for x in (blocks, made))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(top == 0, 1.0, factor / top).astype(np.float32)
    return ratios if np.isfinite(ratios).all() else None
