"""Matrices that a file keeps in few bits, and where among their rows the rows of another one lie.

Read are the weights of ``com.microsoft::MatMulNBits`` and what ``DequantizeLinear`` makes of a
stored matrix, each as rows ``[W, C]`` in the form of :mod:`mla_opt.operator.kv_b`. Whether they are
what is looked for is told by their numbers, one by one, and by nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.graphs.onnx import column_factors
from mla_opt.graphs.onnx.codes import BYTE_TYPES, ROUNDING, are_same, nearest
from mla_opt.graphs.onnx.scaled_rows import Candidate, Loader, code_matrices, stored_codes
from mla_opt.handles import Array
from mla_opt.operator.kv_b import PACKED_BITS, KvB, Storage

_Thing = TypeVar("_Thing")
_Made = TypeVar("_Made")

_BIAS_OF_MATMUL_NBITS = 5
#: Rows that are compared at once: 2 MB of 512 numbers in float64, which a processor's cache holds.
_ROWS = 512

_PACKED_TYPES = {
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
    ir.DataType.INT2: (2, 2),
    ir.DataType.UINT2: (2, 0),
}


@dataclass(frozen=True, eq=False)
class _Operator:
    """A node with what it read when it was found: passes take nodes out of the graph later."""

    node: ir.Node
    inputs: tuple[ir.Value | None, ...]

    def number(self, name: str, default: int) -> int:
        """An attribute."""
        return self.node.attributes.get_int(name, default)


def packed_rows(node: ir.Node) -> KvB | None:
    """The rows ``[W, C]`` of the weight of a product, where it is stored packed, with scales.

    None: it is no such product, or does more than multiply with these numbers.
    """
    if (node.domain, node.op_type) != ("com.microsoft", "MatMulNBits"):
        return None
    operator = _Operator(node, tuple(node.inputs))
    if _is_given(operator, _BIAS_OF_MATMUL_NBITS):
        return None
    return next(_of_matmul_nbits(operator, operator.number("K", 0)), None)


class StoredMatrices:
    """Those of one model as it is now, whatever is dropped from it later.

    Each is read when rows of its width are looked for, and let go then. Layers are asked for in
    their order, as a rule, so a search begins behind the last find.
    """

    def __init__(self, model: ir.Model) -> None:
        self._tensors = stored_codes(model)
        self._candidates: dict[tuple[int, int], deque[Candidate]] = {}
        self._readers = [
            (_Operator(node, tuple(node.inputs)), reader)
            for node in ir.traversal.RecursiveGraphIterator(model.graph)
            if (reader := _READERS.get((node.domain, node.op_type))) is not None
        ]
        self._of_width: dict[int, deque[Loader]] = {}
        self._all_factors = column_factors.read_factors(model)
        self._factors: dict[int, deque[Array]] = {}

    def find(self, rows: Array) -> KvB | None:
        """Return where rows ``[W, C]`` are kept, in their order; None: nowhere."""

        def kept(load: Loader) -> KvB | None:
            stored = load()
            places = _places(stored, rows)
            return None if places is None else stored.take(places).sharing_rows()

        return _first(self._read(rows.shape[1]), kept)

    def find_multiples(self, rows: Array, factors: Array | None = None) -> KvB | None:
        """Return codes that rows ``[W, C]`` are multiples of; None: there are none.

        With ``factors [C]`` the columns of those are multiplied by them, too.
        """
        columns, width = rows.shape[1], rows.dtype.itemsize
        if (columns, width) not in self._candidates:
            known = (Candidate(each, columns) for each in self._read(columns))
            codes = code_matrices(self._tensors, columns, width)
            self._candidates[columns, width] = deque([*known, *codes])
        return _first(self._candidates[columns, width], lambda each: each.multiples(rows, factors))

    def find_factored(self, rows: Array) -> tuple[KvB, Array] | None:
        """Return such codes, and the stored factors of their columns; None: there are none."""
        columns = rows.shape[1]
        if columns not in self._factors:
            self._factors[columns] = deque(column_factors.of_width(self._all_factors, columns))

        def with_factors(factors: Array) -> tuple[KvB, Array] | None:
            kept = self.find_multiples(rows, factors)
            return None if kept is None else (kept, factors)

        return _first(self._factors[columns], with_factors)

    def _read(self, columns: int) -> deque[Loader]:
        if columns not in self._of_width:
            self._of_width[columns] = deque(
                partial(_nth, read, node, columns, place)
                for node, read in self._readers
                for place, _ in enumerate(read(node, columns))
            )
        return self._of_width[columns]


def _nth(read: _Reader, node: _Operator, columns: int, place: int) -> KvB:
    """Read one of the matrices of a node."""
    return next(islice(read(node, columns), place, None))


def _first(things: deque[_Thing], make: Callable[[_Thing], _Made | None]) -> _Made | None:
    """Return what can be made of the first thing that it can be made of, which is put last."""
    for _ in range(len(things)):
        made = make(things[0])
        things.rotate(-1)
        if made is not None:
            return made
    return None


def _places(stored: KvB, rows: Array) -> npt.NDArray[np.int64] | None:
    """Return which stored rows these are; None where one of them is not there."""
    columns = rows.shape[1]
    if len(stored.codes) < 1 or not _holds(stored, rows[:1].astype(np.float64)):
        return None
    # Rows that are the same have the same product with any vector, and others hardly ever.
    probe = np.random.default_rng(0).standard_normal(columns)
    keys = np.concatenate([numbers @ probe for _, numbers in stored.in_parts(columns)])
    parts = [slice(at, at + _ROWS) for at in range(0, len(rows), _ROWS)]
    wanted = np.concatenate([rows[part].astype(np.float64) @ probe for part in parts])
    places = nearest(keys, wanted)
    same = (
        are_same(stored.take(places[part]).numbers(columns), rows[part].astype(np.float64))
        for part in parts
    )
    return places if all(same) else None


def _holds(stored: KvB, row: Array) -> bool:
    """Whether some stored row begins as this one does: read a block of each, not the whole."""
    width = stored.storage.block_size or row.shape[1]
    if not stored.storage.bits or width >= row.shape[1]:
        return True
    blocks = KvB(
        Storage(stored.storage.bits, width),
        stored.codes[:, :1],
        None if stored.scales is None else stored.scales[:, :1],
    )
    if stored.zero_points is not None:
        return True
    starts = blocks.numbers(width)
    gaps = np.abs(starts - row[:, :width]).max(axis=1)
    return bool(gaps.min() <= ROUNDING * max(np.abs(starts).max(), 1e-30))


def _content(node: _Operator, place: int) -> npt.NDArray[np.generic] | None:
    """Return a stored operand; None where there is none, or its content is not known."""
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _is_given(node: _Operator, place: int) -> bool:
    return place < len(node.inputs) and node.inputs[place] is not None


def _of_matmul_nbits(node: _Operator, columns: int) -> Iterator[KvB]:
    bits = node.number("bits", 4)
    block = node.number("block_size", 0)
    fits = node.number("K", 0) == columns and bits in PACKED_BITS and block > 0
    # A g_idx puts columns into blocks of its own.
    if not fits or _is_given(node, 4):
        return
    codes, scales, zeros = (_content(node, place) for place in (1, 2, 3))
    if codes is None or scales is None:
        return
    if _is_given(node, 3) and zeros is None:
        return
    rows, blocks = len(codes), -(-columns // block)
    packed = zeros is not None and zeros.dtype == np.uint8
    storage = Storage(
        bits, block, zero_points="none" if zeros is None else "packed" if packed else "plain"
    )
    yield KvB(
        storage,
        codes.reshape(rows, blocks, -1),
        scales.reshape(rows, blocks),
        None if zeros is None else zeros.reshape(rows, -1),
    )


def _of_dequantize_linear(node: _Operator, columns: int) -> Iterator[KvB]:
    codes, scales, zeros = (_content(node, place) for place in (0, 1, 2))
    if codes is None or scales is None or codes.ndim != 2 or (_is_given(node, 2) and zeros is None):
        return
    axis = node.number("axis", 1) % 2
    block = node.number("block_size", 0)
    for turned in (False, True):
        if codes.shape[0 if turned else 1] != columns:
            continue
        spread = [_by_row(each, axis, block, turned, columns) for each in (scales, zeros)]
        if spread[0] is None or (zeros is not None and spread[1] is None):
            continue
        width = block if block and spread[0].shape[1] > 1 else columns
        rows = codes.T if turned else codes
        tiles = [_repeated(each, len(rows)) for each in spread]
        made = _stored(ir.DataType.from_numpy(codes.dtype), rows, tiles[0], tiles[1], width)
        if made is not None:
            yield made


def _by_row(
    numbers: npt.NDArray[np.generic] | None, axis: int, block: int, turned: bool, columns: int
) -> npt.NDArray[np.generic] | None:
    """Return scales or zero points as [rows or 1, blocks of a row]; None: they are of columns."""
    if numbers is None:
        return None
    if numbers.size == 1:
        return numbers.reshape(1, 1)
    along_columns = axis == (0 if turned else 1)
    if block:
        by_row = numbers.T if turned else numbers
        fits = along_columns and by_row.shape[1] == -(-columns // block)
        return by_row if fits else None
    return None if along_columns else numbers.reshape(-1, 1)


def _repeated(numbers: npt.NDArray[np.generic] | None, rows: int) -> npt.NDArray[np.generic] | None:
    if numbers is None or len(numbers) == rows:
        return numbers
    return numbers.repeat(rows, axis=0)


def _stored(
    kind: ir.DataType,
    rows: npt.NDArray[np.generic],
    scales: npt.NDArray[np.generic] | None,
    zeros: npt.NDArray[np.generic] | None,
    width: int,
) -> KvB | None:
    if kind in BYTE_TYPES:
        storage = Storage(block_size=width, zero_points="none" if zeros is None else "plain")
        return KvB(storage, rows, scales, zeros)
    bits, middle = _PACKED_TYPES.get(kind, (0, 0))
    if not bits or width * bits % 8 or scales is None:
        return None
    codes = rows.astype(np.int64) + middle
    padding = -codes.shape[1] % width
    packed = _packed(np.pad(codes, ((0, 0), (0, padding))), bits)
    points = np.full(scales.shape, middle) if zeros is None else zeros.astype(np.int64) + middle
    if (points == 2 ** (bits - 1)).all():
        return KvB(Storage(bits, width), packed.reshape(*scales.shape, -1), scales)
    storage = Storage(bits, width, zero_points="packed")
    return KvB(storage, packed.reshape(*scales.shape, -1), scales, _packed(points, bits))


def _packed(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.uint8]:
    """Return codes as bytes, the first ones in the lowest bits."""
    each = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    groups = padded.reshape(len(codes), -1, each) << np.arange(0, 8, bits)
    whole: npt.NDArray[np.uint8] = groups.sum(axis=2).astype(np.uint8)
    return whole


_Reader = Callable[[_Operator, int], Iterator[KvB]]
_READERS: dict[tuple[str, str], _Reader] = {
    ("com.microsoft", "MatMulNBits"): _of_matmul_nbits,
    ("", "DequantizeLinear"): _of_dequantize_linear,
}
