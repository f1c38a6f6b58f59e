"""How ``W_UK`` and ``W_UV`` are stored: one matrix ``kv_b``, in the bits that a model keeps.

Row ``h (N + V) + n`` of ``kv_b`` is row n of head h's ``W_UK [N, C]``, row ``h (N + V) + N + v`` is
row v of its ``W_UV^T [V, C]``: ``keys = c_kv @ W_UK^T``, ``values = c_kv @ W_UV``. Every number
is ``(code - zero point) * scale``, computed in float32. With W for ``H (N + V)`` rows, and K for
the ``C / block_size`` blocks of a row:

| storage | ``kv_b`` | ``kv_b_scales`` |
|---|---|---|
| plain | [W, C] float32, float16, bfloat16, float64 | absent: 1 |
| scaled | [W, C] int8, uint8, float8e4m3fn, float8e5m2, float16, bfloat16 | [W / block_rows, K] |
| packed | [W, K, block_size * bits / 8] uint8 | [W, K] |

| storage | ``kv_b_zero_points`` |
|---|---|
| plain | absent: 0 |
| scaled | absent: 0; or as the scales, and of the type of ``kv_b`` |
| packed | absent: 2^(bits-1); or [W, K * bits / 8] uint8, packed; or as the scales in all |

Divisions round up: the last block of a row, and of a column, may be a part of one. *Packed* is the
form of ``com.microsoft::MatMulNBits``: of 2, 4 or 8 bits, the lowest ones first. Scales are
float32, float16 or bfloat16. A scale for each row has ``block_rows`` 1 and ``block_size`` C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError

PACKED_BITS = (2, 4, 8)

StorageKind = Literal["plain", "scaled", "packed"]
ZeroPoints = Literal["none", "packed", "plain"]
Array = npt.NDArray[np.float64]
AnyArray = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Storage:
    """What is to be known of ``kv_b`` beyond its shape and its element type.

    Attributes:
        bits: of a packed number; 0: each number is an element of its own.
        block_size: columns that share a scale; 0: there are no scales.
        block_rows: rows that share a scale.
        zero_points: ``packed`` as the numbers are, or ``plain``: one element each.
    """

    bits: int = 0
    block_size: int = 0
    block_rows: int = 1
    zero_points: ZeroPoints = "none"

    def __post_init__(self) -> None:
        if self.bits not in (0, *PACKED_BITS):
            raise InputError(f"kv_b: {self.bits} bits; supported are {PACKED_BITS}")
        if self.zero_points not in get_args(ZeroPoints):
            raise InputError(f"kv_b: zero points are {self.zero_points!r}")
        if self.block_size < 0 or self.block_rows < 1:
            raise InputError(f"kv_b: a block has {self.block_rows} rows of {self.block_size}")
        self._check_packed()

    def _check_packed(self) -> None:
        if self.zero_points != "none" and not self.block_size:
            raise InputError("kv_b: zero points are given without scales")
        if self.zero_points == "packed" and not self.bits:
            raise InputError("kv_b: zero points are packed, but kv_b is not")
        if not self.bits:
            return
        if self.block_rows != 1:
            raise InputError("kv_b: packed numbers have scales of one row")
        if not self.block_size or self.block_size * self.bits % 8:
            raise InputError(f"kv_b: {self.block_size} numbers of {self.bits} bits fill no bytes")

    @property
    def kind(self) -> StorageKind:
        """The row of the table above."""
        if self.bits:
            return "packed"
        return "scaled" if self.block_size else "plain"

    @property
    def overload(self) -> str:
        """Short name, different for every storage, such as ``packed4_32``; plain: nothing."""
        if self.kind == "plain":
            return ""
        rows = "" if self.block_rows == 1 else f"x{self.block_rows}"
        zeros = "" if self.zero_points == "none" else f"_{self.zero_points}_zeros"
        return f"{self.kind}{self.bits or ''}_{self.block_size}{rows}{zeros}"


#: Numbers as they are.
PLAIN = Storage()
#: Rows that are worked on at once: 2 MB of 512 numbers.
_PART = 512


def numbers(
    storage: Storage,
    kv_b: AnyArray,
    scales: AnyArray | None,
    zero_points: AnyArray | None,
    columns: int,
) -> Array:
    """Return the numbers that ``kv_b`` stores, ``[W, columns]``, in float64.

    Raises:
        InputError: the operands are not those of the storage, or their shapes do not fit.
    """
    _check(storage, kv_b, scales, zero_points, columns)
    codes = kv_b.astype(np.float64) if not storage.bits else _unpacked(kv_b, storage.bits, columns)
    if scales is None:
        return codes
    zeros, factors = _zeros(storage, zero_points, scales.shape), scales.astype(np.float64)
    if storage.block_rows == 1 and columns % storage.block_size == 0:
        blocks = codes.reshape(*scales.shape, storage.block_size)
        blocks -= zeros[..., None]
        blocks *= factors[..., None]
        return blocks.reshape(codes.shape)
    spread = [_spread(storage, each, codes.shape) for each in (zeros, factors)]
    return (codes - spread[0]) * spread[1]


@dataclass(frozen=True, slots=True)
class KvB:
    """Rows of numbers in the form that a file keeps them in; operands as in the table above."""

    storage: Storage
    codes: AnyArray
    scales: AnyArray | None = None
    zero_points: AnyArray | None = None

    def numbers(self, columns: int) -> Array:
        """Return what they are, ``[rows, columns]``."""
        return numbers(self.storage, self.codes, self.scales, self.zero_points, columns)

    def in_parts(self, columns: int) -> Iterator[tuple[slice, Array]]:
        """Which rows, and their numbers: some at a time, which a processor's cache holds.

        Each row has scales of its own (``block_rows`` 1).
        """
        for start in range(0, len(self.codes), _PART):
            rows = slice(start, start + _PART)
            yield rows, self.take(rows).numbers(columns)

    def take(self, rows: slice | npt.NDArray[np.int64]) -> KvB:
        """Return these rows, bit for bit; each has scales of its own (``block_rows`` 1)."""
        return KvB(
            self.storage,
            self.codes[rows],
            None if self.scales is None else self.scales[rows],
            None if self.zero_points is None else self.zero_points[rows],
        )

    @property
    def of_single_rows(self) -> KvB:
        """The same with scales for each row (``block_rows`` 1)."""
        return self._with_block_rows(1, [self._spread_over_rows(x) for x in self._by_blocks])

    def sharing_rows(self, tolerance: float = 0.0) -> KvB:
        """Return the same with one scale for as many rows as share it."""
        if self.scales is None or self.storage.bits or self.storage.block_rows != 1:
            return self
        each = [x.astype(np.float64) for x in self._by_blocks if x is not None]
        changes = np.zeros(len(each[0]) - 1, np.bool_)
        for numbers in each:
            apart = np.abs(np.diff(numbers, axis=0)) > tolerance * np.abs(numbers[1:])
            changes |= apart.any(axis=1)
        together = int(np.gcd.reduce([len(changes) + 1, *(np.flatnonzero(changes) + 1)]))
        first = [None if x is None else x[::together] for x in self._by_blocks]
        return self._with_block_rows(together, first)

    @property
    def _by_blocks(self) -> tuple[AnyArray | None, AnyArray | None]:
        return self.scales, self.zero_points

    def _spread_over_rows(self, of_blocks: AnyArray | None) -> AnyArray | None:
        """Scales or zero points for each row; packed zero points are already."""
        if of_blocks is None or self.storage.block_rows == 1:
            return of_blocks
        return of_blocks.repeat(self.storage.block_rows, axis=0)[: len(self.codes)]

    def _with_block_rows(self, count: int, by_blocks: Sequence[AnyArray | None]) -> KvB:
        return KvB(replace(self.storage, block_rows=count), self.codes, *by_blocks)

    def operands(self) -> dict[str, AnyArray]:
        """Return the tensors by the names of the operator's inputs."""
        given = {
            "kv_b": self.codes,
            "kv_b_scales": self.scales,
            "kv_b_zero_points": self.zero_points,
        }
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.operands().values())


def by_heads(of_keys: KvB, of_values: KvB, heads: int) -> KvB | None:
    """Return the rows of W_UK ``[H N, C]`` and W_UV^T ``[H V, C]`` by heads, those of keys first.

    None where the two are not stored alike.
    """
    pair = of_keys.of_single_rows, of_values.of_single_rows
    if pair[0].storage != pair[1].storage:
        return None
    stored = [each.operands() for each in pair]
    if any(_kind(tensor) != _kind(stored[1][name]) for name, tensor in stored[0].items()):
        return None
    joined = {
        name: _joined_by_heads(tensor, stored[1][name], heads) for name, tensor in stored[0].items()
    }
    more = joined.get("kv_b_scales"), joined.get("kv_b_zero_points")
    return KvB(pair[0].storage, joined["kv_b"], *more).sharing_rows()


def _kind(tensor: AnyArray) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """What rows of two tensors have in common that can be joined."""
    return tensor.dtype, tensor.shape[1:]


def _joined_by_heads(of_keys: AnyArray, of_values: AnyArray, heads: int) -> AnyArray:
    apart = [x.reshape(heads, -1, *x.shape[1:]) for x in (of_keys, of_values)]
    joined: AnyArray = np.concatenate(apart, axis=1).reshape(-1, *of_keys.shape[1:])
    return joined


def _unpacked(packed: AnyArray, bits: int, columns: int) -> Array:
    """Return the codes of rows of bytes, ``[rows, columns]``."""
    shifts, mask = range(0, 8, bits), np.uint8(2**bits - 1)
    stored = packed.reshape(len(packed), -1).view(np.uint8)
    codes = np.empty((*stored.shape, len(shifts)))
    for place, shift in enumerate(shifts):  # one place of all bytes at a time: loops are long
        codes[..., place] = (stored >> np.uint8(shift)) & mask
    return codes.reshape(len(packed), -1)[:, :columns]


def _zeros(storage: Storage, zero_points: AnyArray | None, shape: tuple[int, ...]) -> Array:
    """Return a zero point for each scale."""
    if zero_points is None:
        return np.full(shape, 2.0 ** (storage.bits - 1) if storage.bits else 0.0)
    if storage.zero_points == "packed":
        return _unpacked(zero_points, storage.bits, shape[1])
    return zero_points.astype(np.float64)


def _spread(storage: Storage, of_blocks: Array, shape: tuple[int, ...]) -> Array:
    """Return the number of its block for every element."""
    rows = of_blocks.repeat(storage.block_rows, axis=0)[: shape[0]]
    return rows.repeat(storage.block_size, axis=1)[:, : shape[1]]


def _check(
    storage: Storage,
    kv_b: AnyArray,
    scales: AnyArray | None,
    zero_points: AnyArray | None,
    columns: int,
) -> None:
    blocks = -(-columns // storage.block_size) if storage.block_size else 0
    bytes_of_block = storage.block_size * storage.bits // 8
    expected = (blocks, bytes_of_block) if storage.bits else (columns,)
    if kv_b.shape[1:] != expected:
        raise InputError(f"kv_b has rows of {list(kv_b.shape[1:])}, expected {list(expected)}")
    _check_given("kv_b_scales", scales, storage.block_size > 0)
    _check_given("kv_b_zero_points", zero_points, storage.zero_points != "none")
    of_scales = (-(-kv_b.shape[0] // storage.block_rows), blocks)
    if scales is not None:
        _check_shape("kv_b_scales", scales, of_scales)
    if zero_points is not None:
        packed = (kv_b.shape[0], -(-blocks * storage.bits // 8))
        shape = packed if storage.zero_points == "packed" else of_scales
        _check_shape("kv_b_zero_points", zero_points, shape)


def _check_given(name: str, value: AnyArray | None, wanted: bool) -> None:
    if (value is not None) != wanted:
        raise InputError(f"{name}: {'missing' if wanted else 'given, but the storage has none'}")


def _check_shape(name: str, value: AnyArray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise InputError(f"{name} has shape {list(value.shape)}, expected {list(shape)}")
