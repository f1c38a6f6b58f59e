"""What a node means to the matcher: a small vocabulary that every graph adapter translates into.

The passes never look at operator names. An adapter (:mod:`mla_opt.graphs.onnx.operations`) reads
each node once as one of these, or as :class:`Opaque`, which no walk enters. What each of them does
to the axes of its operands stands in :mod:`mla_opt.matching.axis_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Value


@dataclass(frozen=True, slots=True)
class Permuted:
    """Axis ``i`` of the result is axis ``order[i]`` of the operand."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The same elements in the same row-major order, in another shape."""


@dataclass(frozen=True, slots=True)
class Along:
    """Elements change place along some axes alone: slices, splits, pads, flips, stored indices.

    ``axes`` are pairs of an axis and whether places are counted from its front: whether index ``i``
    of the result is index ``i`` of the operand as far as both have it. Where an operator takes the
    first places of one axis and drops the rest, ``count`` may say how many those are. ``ends`` are
    the places that the only axis has more at its front and at its back, which hold zeros; fewer,
    where they are below 0.
    """

    axes: tuple[tuple[int, bool], ...]
    count: Value | int | None = None
    ends: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """One place of an axis, which the result does not have."""

    axis: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Operands one behind the other along an axis."""

    axis: int


@dataclass(frozen=True, slots=True)
class Stacked:
    """Operands one behind the other along an axis that they do not have themselves."""

    axis: int


@dataclass(frozen=True, slots=True)
class Written:
    """Part of the first operand gives way to the second.

    ``axes`` has a pair for each axis of the second: which axis of the first it is written along,
    and whether from its front, as in :class:`Along`.
    """

    axes: tuple[tuple[int, bool], ...]


@dataclass(frozen=True, slots=True)
class Put:
    """Rows of the second operand are written to computed places along one axis of the first.

    The second has the axes of the first, with the new rows along ``axis``; every other axis is
    written from its front to its end. ``index`` holds the places: ``along`` has for each axis of it
    the axis of the rows that it goes along, ``None`` where it has one place. With ``run`` it holds
    first places alone, and rows are written one behind the other from there.
    """

    axis: int
    index: Value
    along: tuple[int | None, ...]
    run: bool = False


Move = Permuted | Reshaped | Along | Picked | Joined | Stacked | Written | Put


@dataclass(frozen=True, slots=True)
class Layout:
    """Moves elements and computes nothing: reshape, transpose, split, slice, concat, scatter.

    ``data`` are the operands whose elements appear in the result; shapes and indices are not among
    them. ``concat_axis`` is set for a concatenation, counted from the end (-1 is the last axis).
    ``move`` says what that does to the axes, at every size; ``None`` where it is not known, and
    ``why`` then says why.
    """

    data: tuple[Value, ...]
    concat_axis: int | None = None
    move: Move | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Repeats ``data`` along axes of size one, and computes nothing else."""

    data: Value


@dataclass(frozen=True, slots=True)
class Filled:
    """One constant everywhere, in a shape that may be dynamic; ``number`` if it is known."""

    number: float | None = None


@dataclass(frozen=True, slots=True)
class Scaled:
    """``data`` times a constant scalar."""

    data: Value
    factor: float


@dataclass(frozen=True, slots=True)
class ScaledBy:
    """``data`` times a constant tensor, broadcasting; or divided by it, if it ``divides``."""

    data: Value
    factor: Value
    divides: bool = False


@dataclass(frozen=True, slots=True)
class Shifted:
    """``data`` plus a constant."""

    data: Value


@dataclass(frozen=True, slots=True)
class Contraction:
    """A sum of products, as ``einsum`` writes it: a label for every axis.

    Labels that the result does not have are summed over. An axis of size one serves all places of
    its label.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    result: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """``data`` times a constant tensor, whatever its storage.

    ``plain`` when the result is ``data @ weight`` with ``weight`` as it is, or, when it is stored
    ``transposed`` (``[out, in]``), ``data @ weight^T``. ``axes`` has data first; what it says of
    the axes of a ``packed`` weight is not what is stored.
    """

    data: Value
    weight: Value
    plain: bool = False
    transposed: bool = False
    axes: Contraction | None = None
    packed: bool = False


@dataclass(frozen=True, slots=True)
class MatMul:
    """``factor`` times the product of two values, neither of them constant.

    ``addend`` is added to it, times ``addend_factor``, where there is one.
    """

    left: Value
    right: Value
    axes: Contraction | None = None
    factor: float = 1.0
    addend: Value | None = None
    addend_factor: float = 1.0


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
    """Maximum over one axis, counted from the end, which is kept as one of size one."""

    data: Value
    axis: int = -1


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
class IsInfinite:
    """True at most where ``data`` is infinite."""

    data: Value


@dataclass(frozen=True, slots=True)
class NanToZero:
    """``data``, but 0 where it is not a number; what is infinite may be a large number."""

    data: Value


@dataclass(frozen=True, slots=True)
class Cast:
    """``data`` in another floating-point type."""

    data: Value


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax over one axis, counted from the end; or its ``logarithm``."""

    data: Value
    axis: int = -1
    logarithm: bool = False


@dataclass(frozen=True, slots=True)
class LogarithmOfSum:
    """Logarithm of the sum of exponentials along one axis, counted from the end, which is kept."""

    data: Value
    axis: int = -1


@dataclass(frozen=True, slots=True)
class Logarithm:
    """Natural logarithm of each element."""

    data: Value


@dataclass(frozen=True, slots=True)
class Exponential:
    """``e`` to the power of each element."""

    data: Value


@dataclass(frozen=True, slots=True)
class RowSum:
    """Sum over one axis, counted from the end, which is kept as one of size one."""

    data: Value
    axis: int = -1


@dataclass(frozen=True, slots=True)
class Quotient:
    """``left / right``, both computed."""

    left: Value
    right: Value


@dataclass(frozen=True, slots=True)
class OwnCache:
    """Past keys and values ``[B, H, P, D]`` that a node joins new ones to, and what it returns.

    ``key``, ``value`` are the past, ``present_key``, ``present_value`` past and new ones. With
    ``last [B]`` they are buffers, and it is the place of each sequence's last new row in them; what
    is returned has ``total`` rows, or as many as the past if those are more.
    """

    key: Value
    value: Value
    present_key: Value
    present_value: Value
    last: Value | None = None
    total: Value | None = None


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """A whole scaled-dot-product attention in one node.

    Operands are ``[B, H, S, D]``, or ``[B, S, H D]`` if ``flat``. Where keys and values have fewer
    heads than the query, consecutive heads of the query share one. With ``lengths [B]`` each
    sequence has so many keys, from the front, and ``causal`` takes the queries for the last of
    them. ``unsupported`` says in words what the node does beyond that; empty when it does nothing
    more.
    """

    query: Value
    key: Value
    value: Value
    bias: Value | None
    scale: float
    causal: bool
    output: Value
    unsupported: str = ""
    flat: bool = False
    heads: int | None = None
    key_heads: int | None = None
    past: OwnCache | None = None
    lengths: Value | None = None


@dataclass(frozen=True, slots=True)
class Opaque:
    """Anything else: no walk goes through it.

    ``product`` says that it is one of two values, ``rounds`` that it computes with activations that
    are quantized, ``attention`` that it is a whole attention.
    """

    product: bool = False
    rounds: bool = False
    attention: bool = False


Operation = (
    Layout
    | Broadcast
    | Filled
    | Scaled
    | ScaledBy
    | Shifted
    | Linear
    | MatMul
    | Add
    | Subtract
    | RowMaximum
    | Select
    | IsNan
    | IsInfinite
    | NanToZero
    | Cast
    | Softmax
    | Exponential
    | Logarithm
    | LogarithmOfSum
    | RowSum
    | Quotient
    | FusedAttention
    | Opaque
)
