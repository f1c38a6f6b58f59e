"""What a node means to the matcher: a small vocabulary that every graph adapter translates into.

The passes never look at operator names. An adapter (:mod:`mla_opt.graphs.onnx.operations`) reads
each node once as one of these, or as :class:`Opaque`, which no walk enters. What counts as
token-wise linear is exactly :class:`Layout`, :class:`Broadcast`, :class:`Scaled`,
:class:`Shifted` and :class:`Linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Value


@dataclass(frozen=True, slots=True)
class Layout:
    """Moves elements and computes nothing: reshape, transpose, split, slice, concat, scatter.

    ``data`` are the operands whose elements appear in the result; shapes and indices are not among
    them. ``concat_axis`` is set for a concatenation, counted from the end (-1 is the last axis).
    """

    data: tuple[Value, ...]
    concat_axis: int | None = None


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Repeats ``data`` along axes of size one, and computes nothing else."""

    data: Value


@dataclass(frozen=True, slots=True)
class Filled:
    """One constant everywhere, in a shape that may be dynamic."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """``data`` times a constant scalar."""

    data: Value
    factor: float


@dataclass(frozen=True, slots=True)
class Shifted:
    """``data`` plus a constant."""

    data: Value


@dataclass(frozen=True, slots=True)
class Linear:
    """``data`` times a constant matrix, whatever its storage.

    ``plain`` when the result is ``data @ weight`` with ``weight`` as it is, or, when it is stored
    ``transposed`` (``[out, in]``), ``data @ weight^T``.
    """

    data: Value
    weight: Value
    plain: bool = False
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class MatMul:
    """Product of two values, neither of them constant."""

    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class Add:
    """Sum of two values, neither of them constant, or one of them a constant tensor."""

    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class Subtract:
    """``left - right``."""

    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class RowMaximum:
    """Maximum over the last axis, kept as an axis of size one."""

    data: Value


@dataclass(frozen=True, slots=True)
class Select:
    """``chosen`` where ``condition``, else ``other``."""

    condition: Value
    chosen: Value
    other: Value


@dataclass(frozen=True, slots=True)
class IsNan:
    """True where ``data`` is not a number."""

    data: Value


@dataclass(frozen=True, slots=True)
class Cast:
    """``data`` in another floating-point type."""

    data: Value


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax over the last axis."""

    data: Value


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """A whole scaled-dot-product attention in one node, heads on axis 1 of rank-4 operands.

    ``unsupported`` says in words what the node does beyond that; empty when it does nothing more.
    """

    query: Value
    key: Value
    value: Value
    bias: Value | None
    scale: float
    causal: bool
    output: Value
    unsupported: str = ""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Anything else: no walk goes through it. ``product`` says that it is one of two values."""

    product: bool = False


Operation = (
    Layout
    | Broadcast
    | Filled
    | Scaled
    | Shifted
    | Linear
    | MatMul
    | Add
    | Subtract
    | RowMaximum
    | Select
    | IsNan
    | Cast
    | Softmax
    | FusedAttention
    | Opaque
)
