"""One dimension of a graph input: its size as the file states it, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

#: What a dimension counts. ``broadcast`` is one entry for all rows, ``capacity`` the rows of a
#: cache buffer that is updated in place, ``free`` everything whose meaning is its size.
AxisRole = Literal["batch", "query_len", "past_len", "total_len", "broadcast", "capacity", "free"]

#: A number, a symbol or expression, or nothing at all.
Size = int | str | None

#: Size of a dimension that has nothing to do with tokens, such as that of an unused input.
UNKNOWN_SIZE = 2

#: Longer expressions than any exporter writes are not worth a parser's time.
MAX_EXPRESSION = 200


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: ``role`` says what it counts, ``size`` what the file says about it."""

    role: AxisRole
    size: Size


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output. ``axes`` is ``None`` where the file states no rank.

    A mask that ``hides`` is true, or 1, at what may not be looked at; one that does not, at what
    may. ``None``: it is no mask, or nothing tells.
    """

    name: str
    dtype: ir.DataType | None
    axes: tuple[Axis, ...] | None
    hides: bool | None = None

    @classmethod
    def of(cls, value: ir.Value) -> Port:
        """Read a graph input or output; every role is still ``free``."""
        axes = None
        if value.shape is not None:
            axes = tuple(Axis("free", read_size(dim)) for dim in value.shape)
        return cls(value.name or "", value.dtype, axes)

    @property
    def rank(self) -> int | None:
        """Number of dimensions, if the file states it."""
        return None if self.axes is None else len(self.axes)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The stated sizes; empty where the file states no rank."""
        return () if self.axes is None else tuple(axis.size for axis in self.axes)

    def with_roles(self, roles: Mapping[int, AxisRole]) -> Port:
        """Return this port with the roles of some dimensions set."""
        if self.axes is None:
            return self
        axes = (replace(a, role=roles.get(i, a.role)) for i, a in enumerate(self.axes))
        return replace(self, axes=tuple(axes))

    def axis_of(self, *roles: AxisRole) -> int | None:
        """Index of the first dimension with one of ``roles``."""
        matches = (i for i, axis in enumerate(self.axes or ()) if axis.role in roles)
        return next(matches, None)


def read_size(dim: int | ir.SymbolicDim) -> Size:
    """Read a dimension; a symbol of digits is a number (one exporter writes ``'48'`` for 48)."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    text = (dim.value or "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else text or None


def is_expression(size: Size) -> bool:
    """Whether ``size`` is more than one symbol, such as ``s15 + s70``."""
    return isinstance(size, str) and any(c in size for c in "+-*/%()")


def evaluate(size: Size, symbols: Mapping[str, int]) -> int | None:
    """Value of ``size`` where ``symbols`` give one, else ``None``."""
    if size is None or isinstance(size, int):
        return size
    if size in symbols:
        return symbols[size]
    if not is_expression(size) or len(size) > MAX_EXPRESSION or "**" in size:
        return None
    try:
        value = ir.SymbolicDim(size).evaluate(symbols)
    except (ValueError, ArithmeticError, RecursionError, TypeError):
        return None  # a name that merely looks like arithmetic, such as "batch-size"
    return value if isinstance(value, int) else None
