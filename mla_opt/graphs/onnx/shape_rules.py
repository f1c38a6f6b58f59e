"""Shapes that ONNX operators make, as expressions: one small function a family of operators.

Every rule says what the operator's definition says, at every size. A size that it cannot say is one
of its own (:meth:`Facts.unknown`), a shape that it cannot say is ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.contractions import einsum_labels
from mla_opt.graphs.onnx.integers import Integers, number, vector
from mla_opt.graphs.sizes import Expression

Shape = tuple[Expression, ...]

_WHOLE = 1 << 30
"""Slice bounds this large mean: to the end."""


class Facts(Protocol):
    """What is known of the operands."""

    def shape(self, value: ir.Value) -> Shape | None:
        """Sizes of a value."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def unknown(self) -> Expression:
        """A size that is equal to itself only."""


Rule = Callable[[Facts, ir.Node], Sequence[Shape | None]]


def shapes_of(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Return the shape of every output; those at the end may be left out."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    return () if rule is None else rule(facts, node)


# Operands and attributes


def operand(node: ir.Node, place: int) -> ir.Value | None:
    """One operand; ``None`` where it is absent."""
    return node.inputs[place] if place < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def shape_at(facts: Facts, node: ir.Node, place: int) -> Shape | None:
    """Shape of one operand."""
    value = operand(node, place)
    return None if value is None else facts.shape(value)


def numbers_at(
    facts: Facts, node: ir.Node, place: int, name: str | None = None
) -> list[Expression] | None:
    """Integers given as an operand, or as an attribute in older opsets."""
    if name is not None and name in node.attributes:
        given = node.attributes[name].value
        return [given] if isinstance(given, int) else list(given)
    value = operand(node, place)
    return None if value is None else vector(facts.integers(value))


def axis_of(axis: int, rank: int) -> int | None:
    """A place counted from the front; ``None`` where there is no such axis."""
    axis = axis + rank if axis < 0 else axis
    return axis if 0 <= axis < rank else None


def _replaced(shape: Shape, axis: int, size: Expression) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


# Rules


def broadcast_shapes(shapes: Sequence[Shape]) -> Shape:
    """NumPy's broadcasting, of calls that succeed."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(reduce(sizes.broadcast, column) for column in zip(*padded))


def _elementwise(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shapes = [facts.shape(value) for value in node.inputs if value is not None]
    known = [shape for shape in shapes if shape is not None]
    return () if len(known) < len(shapes) else (broadcast_shapes(known),)


def _like_first(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    return (shape_at(facts, node, 0),)


def _constant(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    for name, single in (("value_int", ()), ("value_float", ()), ("value_string", ())):
        if name in node.attributes:
            return (single,)
    for name in ("value_ints", "value_floats", "value_strings"):
        if name in node.attributes:
            return ((len(node.attributes[name].value),),)
    tensor = attribute(node, "value")
    return () if tensor is None else (tuple(int(size) for size in tensor.shape),)


def _shape(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ((facts.unknown(),),)
    return ((len(shape[attribute(node, "start", 0) : attribute(node, "end")]),),)


def _scalar(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    return ((),)


def _transpose(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    order = attribute(node, "perm") or tuple(reversed(range(len(shape))))
    valid = sorted(order) == list(range(len(shape)))
    return (tuple(shape[axis] for axis in order),) if valid else ()


def _reshape(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, target = shape_at(facts, node, 0), operand(node, 1)
    wanted = None if target is None else vector(facts.integers(target))
    if target is None:
        return ()
    if wanted is None:
        rank = (facts.shape(target) or (None,))[0]
        return (tuple(facts.unknown() for _ in range(rank)),) if isinstance(rank, int) else ()
    return (_reshaped(facts, shape, wanted, bool(attribute(node, "allowzero", 0))),)


def _reshaped(
    facts: Facts, shape: Shape | None, wanted: list[Expression], allow_zero: bool
) -> Shape:
    result: list[Expression | None] = []
    for place, size in enumerate(wanted):
        if size == 0 and not allow_zero:
            known = shape is not None and place < len(shape)
            size = shape[place] if known and shape is not None else facts.unknown()
        result.append(None if size == -1 else size)
    if None not in result:
        return tuple(result)
    rest = None
    if shape is not None and result.count(None) == 1:
        others = sizes.product(size for size in result if size is not None)
        rest = sizes.quotient(sizes.product(shape), others)
    return tuple(
        (facts.unknown() if rest is None else rest) if size is None else size for size in result
    )


def _expand(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, wanted = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    if wanted is None:
        target = shape_at(facts, node, 1)
        rank = target[0] if target else None
        if not isinstance(rank, int):
            return ()
        return (tuple(facts.unknown() for _ in range(max(rank, len(shape)))),)
    return (broadcast_shapes([shape, tuple(wanted)]),)


def _tile(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, repeats = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    if repeats is None or len(repeats) != len(shape):
        return (tuple(facts.unknown() for _ in shape),)
    return (tuple(sizes.product(pair) for pair in zip(shape, repeats)),)


def _slice(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    spans = spans_of(facts, node)
    if spans is None:
        return (tuple(facts.unknown() for _ in shape),)
    result = list(shape)
    for axis, (start, stop, step) in spans.items():
        result[axis] = _span(facts, shape[axis], start, stop, step)
    return (tuple(result),)


def spans_of(
    facts: Facts, node: ir.Node
) -> dict[int, tuple[Expression | None, Expression | None, Expression | None]] | None:
    """Start, stop and step of a Slice by axis, ``None`` where unknown; ``None``: axes unknown."""
    shape = shape_at(facts, node, 0)
    starts = shape_at(facts, node, 1)
    count = (
        len(node.attributes["starts"].value)
        if "starts" in node.attributes
        else (starts[0] if starts else None)
    )
    if shape is None or not isinstance(count, int):
        return None
    axes = numbers_at(facts, node, 3, "axes")
    if axes is None:
        given = operand(node, 3) is not None
        axes = None if given else list(range(count))
    if axes is None or not all(isinstance(axis, int) for axis in axes):
        return None
    unknown: list[Expression | None] = [None] * count
    start = numbers_at(facts, node, 1, "starts") or unknown
    stop = numbers_at(facts, node, 2, "ends") or unknown
    step = numbers_at(facts, node, 4) or unknown
    if operand(node, 4) is None:
        step = [1] * count
    places = [axis_of(axis, len(shape)) for axis in axes]
    if None in places or not len(places) == len(start) == len(stop) == len(step):
        return None
    return {place: bounds for place, *bounds in zip(places, start, stop, step) if place is not None}  # type: ignore[misc]


def _span(
    facts: Facts,
    size: Expression,
    start: Expression | None,
    stop: Expression | None,
    step: Expression | None,
) -> Expression:
    if isinstance(size, int) and all(isinstance(each, int) for each in (start, stop, step)):
        return len(range(size)[slice(start, _python_stop(stop, step), step)])
    if step != 1 or start is None or stop is None:
        return facts.unknown()
    if start == 0:
        return _from_front(facts, size, stop)
    return _from_within(facts, size, start, stop)


def _python_stop(stop: Expression | None, step: Expression | None) -> Expression | None:
    """A stop far below zero, backwards, means: to the front."""
    backwards = isinstance(step, int) and step < 0
    return None if backwards and isinstance(stop, int) and stop < -_WHOLE else stop


def _from_front(facts: Facts, size: Expression, stop: Expression) -> Expression:
    if isinstance(stop, int):
        if stop >= _WHOLE:
            return size
        return _from_back(facts, size, stop) if stop < 0 else sizes.smaller(size, stop)
    if sizes.same(size, stop):
        return size
    rest = sizes.difference(size, stop)
    if getattr(rest, "is_nonnegative", None) and getattr(stop, "is_nonnegative", None):
        return stop
    return sizes.smaller(size, stop) if getattr(stop, "is_nonnegative", None) else facts.unknown()


def _from_back(facts: Facts, size: Expression, stop: int) -> Expression:
    """All but the last few places, of an axis that has so many."""
    rest = sizes.plain(size + stop)
    if isinstance(rest, int):
        return max(rest, 0)
    return rest if rest.is_nonnegative else facts.unknown()


def _from_within(facts: Facts, size: Expression, start: Expression, stop: Expression) -> Expression:
    """From the start of new rows, say, to the end: exact where both lie within the axis."""
    whole = (isinstance(stop, int) and stop >= _WHOLE) or sizes.same(stop, size)
    if not whole or isinstance(start, int):
        return facts.unknown()
    rest = sizes.difference(size, start)
    inside = getattr(start, "is_nonnegative", None) and (
        rest >= 0 if isinstance(rest, int) else rest.is_nonnegative
    )
    return rest if inside else facts.unknown()


def _concat(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shapes = [facts.shape(value) for value in node.inputs if value is not None]
    if not shapes or any(shape is None for shape in shapes):
        return ()
    known = [shape for shape in shapes if shape is not None]
    axis = axis_of(attribute(node, "axis", 0), len(known[0]))
    if axis is None or any(len(shape) != len(known[0]) for shape in known):
        return ()
    total: Expression = 0
    for shape in known:
        total = total + shape[axis]
    return (_replaced(known[0], axis, sizes.plain(total)),)


def _gather(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or indices is None:
        return ()
    axis = axis_of(attribute(node, "axis", 0), len(shape))
    return () if axis is None else ((*shape[:axis], *indices, *shape[axis + 1 :]),)


def _gather_quantized(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Rows of a packed matrix; bytes hold several numbers of the last axis each."""
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    data = operand(node, 0)
    if not shape or indices is None or data is None:
        return ()
    if data.dtype == ir.DataType.UINT8:
        shape = (*shape[:-1], shape[-1] * (8 // attribute(node, "bits", 4)))
    axis = axis_of(attribute(node, "gather_axis", 0), len(shape))
    return () if axis is None else ((*shape[:axis], *indices, *shape[axis + 1 :]),)


def _compressed(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """How much is kept depends on data."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = attribute(node, "axis")
    place = None if axis is None else axis_of(axis, len(shape))
    return ((facts.unknown(),) if place is None else _replaced(shape, place, facts.unknown()),)


def _found(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    return () if shape is None else ((len(shape), facts.unknown()),)


def _gather_nd(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or not indices or not isinstance(indices[-1], int):
        return ()
    return ((*indices[:-1], *shape[attribute(node, "batch_dims", 0) + indices[-1] :]),)


def _unsqueeze(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, axes = shape_at(facts, node, 0), numbers_at(facts, node, 1, "axes")
    if shape is None or axes is None or not all(isinstance(axis, int) for axis in axes):
        return ()
    rank = len(shape) + len(axes)
    places = {axis_of(axis, rank) for axis in axes}
    if None in places or len(places) != len(axes):
        return ()
    rest = iter(shape)
    return (tuple(1 if place in places else next(rest) for place in range(rank)),)


def _squeeze(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, axes = shape_at(facts, node, 0), numbers_at(facts, node, 1, "axes")
    if shape is None:
        return ()
    if axes is None:
        if operand(node, 1) is not None or not all(isinstance(size, int) for size in shape):
            return ()
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    places = {axis_of(axis, len(shape)) for axis in axes}
    return (tuple(size for axis, size in enumerate(shape) if axis not in places),)


def _split(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = axis_of(attribute(node, "axis", 0), len(shape))
    if axis is None:
        return ()
    count = len(node.outputs)
    parts = numbers_at(facts, node, 1, "split")
    if parts is None and operand(node, 1) is None:
        size = shape[axis]
        whole = sizes.quotient(size, count)
        if whole is not None:
            parts = [whole] * count
        elif isinstance(size, int):
            most = -(-size // count)
            parts = [most] * (count - 1) + [size - most * (count - 1)]
    if parts is None or len(parts) != count:
        parts = [facts.unknown() for _ in range(count)]
    return [_replaced(shape, axis, part) for part in parts]


def _flatten(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = attribute(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return ((sizes.product(shape[:axis]), sizes.product(shape[axis:])),)


def _pad(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    pads = pads_of(facts, node)
    if pads is None:
        return (tuple(facts.unknown() for _ in shape),)
    return (
        tuple(
            facts.unknown()
            if before is None or after is None
            else sizes.plain(size + before + after)
            for size, (before, after) in zip(shape, pads)
        ),
    )


def pads_of(
    facts: Facts, node: ir.Node
) -> list[tuple[Expression | None, Expression | None]] | None:
    """What a Pad adds before and after each axis; ``None`` where the axes are not known."""
    shape = shape_at(facts, node, 0)
    amounts = numbers_at(facts, node, 1, "pads")
    if shape is None or amounts is None:
        return None
    axes = list(range(len(shape)))
    if operand(node, 3) is not None:
        given = numbers_at(facts, node, 3)
        if given is None or not all(isinstance(axis, int) for axis in given):
            return None
        axes = [axis_of(axis, len(shape)) or 0 for axis in given]
    if len(amounts) != 2 * len(axes):
        return None
    pads: list[tuple[Expression | None, Expression | None]] = [(0, 0)] * len(shape)
    for place, axis in enumerate(axes):
        pads[axis] = (amounts[place], amounts[len(axes) + place])
    return pads


def _filled(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    wanted = numbers_at(facts, node, 0)
    if wanted is not None:
        return (tuple(wanted),)
    rank = (shape_at(facts, node, 0) or (None,))[0]
    return (tuple(facts.unknown() for _ in range(rank)),) if isinstance(rank, int) else ()


def _range(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    start, limit, delta = (
        None if value is None else number(facts.integers(value))
        for value in (operand(node, place) for place in range(3))
    )
    if start is None or limit is None or delta != 1:
        return ((facts.unknown(),),)
    size = sizes.difference(limit, start)
    if isinstance(size, int):
        return ((max(size, 0),),)
    return ((size if size.is_nonnegative else facts.unknown(),),)


def _matmul(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    left, right = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if left is None or right is None or not left or not right:
        return ()
    left = _turned(node, "A", left)
    right = _turned(node, "B", right)
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    batch = broadcast_shapes([left[:-2], right[:-2]])
    return ((*batch, *rows, *columns),)


def _turned(node: ir.Node, side: str, shape: Shape) -> Shape:
    """FusedMatMul reads its operands transposed, if it says so."""
    if len(shape) > 1 and attribute(node, f"trans{side}", 0):
        return (*shape[:-2], shape[-1], shape[-2])
    return shape


def _gemm(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    left, right = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return ()
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    columns = right[0] if attribute(node, "transB", 0) else right[1]
    return ((rows, columns),)


def _quantized_matmul(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, columns = shape_at(facts, node, 0), attribute(node, "N")
    return ((*shape[:-1], columns),) if shape and columns else ()


def _einsum(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    labels = einsum_labels(attribute(node, "equation", ""), len(node.inputs))
    shapes = [None if value is None else facts.shape(value) for value in node.inputs]
    if labels is None or any(shape is None for shape in shapes):
        return ()
    known: dict[str, Expression] = {}
    for names, shape in zip(labels[0], shapes):
        if shape is None or len(names) != len(shape):
            return ()
        for name, size in zip(names, shape):
            known[name] = sizes.broadcast(known[name], size) if name in known else size
    if any(name not in known for name in labels[1]):
        return ()
    return (tuple(known[name] for name in labels[1]),)


def _reduced(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axes = numbers_at(facts, node, 1, "axes")
    if axes is None:
        if operand(node, 1) is not None:
            return ()
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(len(shape)))
    return (_without(shape, axes, bool(attribute(node, "keepdims", 1))),)


def _arg(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    return (_without(shape, [attribute(node, "axis", 0)], bool(attribute(node, "keepdims", 1))),)


def _without(shape: Shape, axes: list[Expression], keep: bool) -> Shape | None:
    places = {axis_of(axis, len(shape)) if isinstance(axis, int) else None for axis in axes}
    if None in places:
        return None
    if keep:
        return tuple(1 if axis in places else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in places)


def _top(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, count = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    axis = axis_of(attribute(node, "axis", -1), len(shape))
    if axis is None:
        return ()
    size = facts.unknown() if not count else count[0]
    return [_replaced(shape, axis, size)] * 2


def _indices_like(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    return (shape_at(facts, node, 1),)


def _normalized(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """The first output is as large as the first operand; nobody reads the others' shapes."""
    return (shape_at(facts, node, 0),)


def _conv(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    shape, weight = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or weight is None:
        return ()
    pointwise = (
        all(size == 1 for size in weight[2:])
        and all(step == 1 for step in attribute(node, "strides", ()) or ())
        and not any(attribute(node, "pads", ()) or ())
    )
    if pointwise:
        return ((shape[0], weight[0], *shape[2:]),)
    return ((shape[0], weight[0], *(facts.unknown() for _ in shape[2:])),)


def _attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """The ONNX operator; heads are counted by attributes where operands have three axes."""
    query, value = shape_at(facts, node, 0), shape_at(facts, node, 2)
    if query is None or value is None:
        return ()
    if len(query) == 4 and len(value) == 4:
        return ((*query[:3], value[3]), *_joined_caches(facts, node, 4))
    heads, of_values = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if len(query) != 3 or len(value) != 3 or not heads or not of_values:
        return ()
    width = sizes.quotient(value[2], of_values)
    if width is None:
        return ()
    made = (query[0], query[1], sizes.product((width, heads)))
    return (made, *_joined_caches(facts, node, 4))


def _joined_caches(facts: Facts, node: ir.Node, place: int) -> Sequence[Shape | None]:
    """Of past keys and values ``[B, H, P, D]``, an operand each, and new rows."""
    key = shape_at(facts, node, 1)
    pasts = [shape_at(facts, node, place), shape_at(facts, node, place + 1)]
    if key is None or any(past is None or len(past) != 4 for past in pasts):
        return ()
    new = key[2] if len(key) == 4 else key[1]
    return tuple((*past[:2], past[2] + new, past[3]) for past in pasts if past is not None)


def _multi_head_attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """ONNX Runtime's operator of ``[B, S, H D]``."""
    query, value = shape_at(facts, node, 0), shape_at(facts, node, 2)
    if query is None or value is None or len(query) != 3 or len(value) != 3:
        return ()
    return ((*query[:2], value[2]), *_joined_caches(facts, node, 6))


RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", name): _elementwise
        for name in (
            *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where"),
            *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
            *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu"),
        )
    },
    **{
        ("", name): _like_first
        for name in (
            *("Identity", "Cast", "CastLike", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log"),
            *("Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Softplus", "Floor", "Ceil", "Round"),
            *("Not", "IsNaN", "IsInf", "Sign", "Sin", "Cos", "Clip", "Elu", "LeakyRelu"),
            *("HardSigmoid", "HardSwish", "Mish", "Selu", "ThresholdedRelu", "Trilu", "CumSum"),
            *("Softmax", "LogSoftmax", "Hardmax", "Dropout", "ScatterND", "ScatterElements"),
            *("Scatter", "RotaryEmbedding", "LpNormalization", "QuantizeLinear", "Swish"),
            *("DequantizeLinear", "DynamicQuantizeLinear", "TensorScatter", "BitwiseNot"),
        )
    },
    **{
        ("", name): _normalized
        for name in ("LayerNormalization", "RMSNormalization", "GroupNormalization")
    },
    **{
        ("", name): _reduced
        for name in (
            *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        )
    },
    ("", "Constant"): _constant,
    ("", "Shape"): _shape,
    ("", "Size"): _scalar,
    ("", "Transpose"): _transpose,
    ("", "Reshape"): _reshape,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "Slice"): _slice,
    ("", "Concat"): _concat,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _indices_like,
    ("", "GatherND"): _gather_nd,
    ("", "Compress"): _compressed,
    ("", "NonZero"): _found,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Squeeze"): _squeeze,
    ("", "Split"): _split,
    ("", "Flatten"): _flatten,
    ("", "Pad"): _pad,
    ("", "ConstantOfShape"): _filled,
    ("", "Range"): _range,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Einsum"): _einsum,
    ("", "ArgMax"): _arg,
    ("", "ArgMin"): _arg,
    ("", "TopK"): _top,
    ("", "Conv"): _conv,
    ("", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head_attention,
    ("com.microsoft", "FusedMatMul"): _matmul,
    ("com.microsoft", "MatMulNBits"): _quantized_matmul,
    ("com.microsoft", "MatMulBnb4"): _quantized_matmul,
    ("com.microsoft", "GatherBlockQuantized"): _gather_quantized,
    **{
        ("com.microsoft", name): _like_first
        for name in (
            *("FastGelu", "QuickGelu", "BiasGelu", "Gelu", "RotaryEmbedding"),
            *("QuantizeLinear", "DequantizeLinear", "QLinearSoftmax", "QLinearSigmoid"),
        )
    },
    **{
        ("com.microsoft", name): _normalized
        for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    },
    ("", "SimplifiedLayerNormalization"): _normalized,
    ("com.microsoft", "SimplifiedLayerNormalization"): _normalized,
}
