"""The attention cores of a graph: softmax between two matrix products, or one fused node.

    scores = scale * query @ key^T (+ bias ...)       bias: additive, boolean, or both
    output = softmax(scores [| sink]) @ value

A core is read outward from its softmax: backward to the product of query and key, forward to the
product with the values. Guards that exporters put around the softmax (casts, NaN to zero, the
maximum subtracted) change nothing of this and are part of the core.

The axes of the scores are carried along (:mod:`mla_opt.matching.axes`): what lies between a product
and the softmax may group and permute sequences, heads and tokens, and must keep each what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import (
    ApartError,
    Atom,
    Axis,
    Placement,
    UnknownShapeError,
    Variables,
)
from mla_opt.matching.axis_rules import Operand, Step, broadcast_axes, operands, product_axes
from mla_opt.sites import AttentionCore, BiasTerm

_NEVER = -1e4
"""A score this low or lower, chosen by a mask, means: do not attend."""

_KEYS = "t"
"""The variable of the tokens that a softmax goes over."""


@dataclass(frozen=True, slots=True)
class CoreAxes:
    """The axes of what a core reads and makes, in the variables of its scores.

    ``keys`` is the variable of the tokens attended to. ``apart`` says why the axes are not known;
    it is empty if they are.
    """

    variables: Variables
    query: Placement = ()
    key: Placement = ()
    value: Placement = ()
    output: Placement = ()
    bias: tuple[Placement, ...] = ()
    keys: str = _KEYS
    apart: str = ""
    at: Node | None = None
    code: str = ApartError.code


@dataclass(frozen=True, slots=True)
class ReadCore:
    """An attention, and what is known of its axes."""

    core: AttentionCore
    axes: CoreAxes


@dataclass(frozen=True, slots=True)
class _At:
    """A place of a walk: a value and its axes; with the first thing that they were lost at."""

    value: Value
    axes: Placement | None
    apart: str = ""
    lost_at: Node | None = None
    code: str = ApartError.code

    def lost(self, value: Value, why: str | ApartError, node: Node) -> _At:
        """Go on without knowing the axes."""
        if self.apart:
            return replace(self, value=value, axes=None)
        code = why.code if isinstance(why, ApartError) else UnknownShapeError.code
        return _At(value, None, str(why), node, code)


@dataclass(frozen=True, slots=True)
class _Scores:
    """What the walk from the softmax back to the product of query and key has collected."""

    first: Node
    query: _At
    key: _At
    scale: float = 1.0
    bias: tuple[BiasTerm, ...] = ()
    bias_axes: tuple[Placement, ...] = ()
    sink: Value | None = None
    nodes: tuple[Node, ...] = field(default=())


def attention_cores(graph: Graph) -> Iterator[ReadCore]:
    """Yield every attention of the main graph, in graph order."""
    for node in graph.nodes():
        match graph.operation(node):
            case op.FusedAttention() as fused:
                yield _from_fused(graph, node, fused)
            case op.Softmax() as softmax:
                core = _from_softmax(graph, node, softmax)
                if core is not None:
                    yield core
            case _:
                pass


# A fused node


def _from_fused(graph: Graph, node: Node, fused: op.FusedAttention) -> ReadCore:
    bias = () if fused.bias is None else (BiasTerm("either", fused.bias),)
    core = AttentionCore(
        query=fused.query,
        key=fused.key,
        value=fused.value,
        output=fused.output,
        scale=fused.scale,
        first=node,
        last=node,
        bias=bias,
        causal=fused.causal,
        unsupported=fused.unsupported,
        nodes=(node,),
    )
    return ReadCore(core, _fused_axes(graph, node, fused))


def _fused_axes(graph: Graph, node: Node, fused: op.FusedAttention) -> CoreAxes:
    """Axes of ``[B, H, S, D]`` or ``[B, S, H D]``; the slow part of H are the heads of the keys."""
    variables = Variables()
    shapes = [graph.sizes(value) for value in (fused.query, fused.key, fused.value)]
    query, key, value = shapes
    rank = 3 if fused.flat else 4
    if query is None or key is None or value is None:
        why = "the shapes of its operands are not known"
        return CoreAxes(variables, apart=why, at=node, code=UnknownShapeError.code)
    if not len(query) == len(key) == len(value) == rank:
        return CoreAxes(variables, apart="its operands are of other ranks", at=node)
    heads = fused.heads if fused.flat else query[1]
    key_heads = fused.key_heads if fused.flat else key[1]
    repeats = None if heads is None or key_heads is None else sizes.quotient(heads, key_heads)
    widths = [
        _width_of_head(shape, count, fused.flat)
        for shape, count in ((query, heads), (key, key_heads), (value, key_heads))
    ]
    if repeats is None or None in widths or (not fused.flat and value[1] != key[1]):
        why = "its heads are not as many as those of the keys, or some times as many"
        return CoreAxes(variables, apart=why, at=node)
    tokens = -2 if not fused.flat else 1
    batch, new = variables.new("b", query[0]), variables.new("s", query[tokens])
    seen = variables.new(_KEYS, key[tokens])
    shared, own = variables.new("h", key_heads), variables.new("r", repeats)
    variables.whole.update(("s", _KEYS))
    wide: list[Axis] = [() if width == 1 else (Atom(width),) for width in widths]

    def placed(head: Axis, token: Axis, width: Axis) -> Placement:
        return (batch, token, (*head, *width)) if fused.flat else (batch, head, token, width)

    return CoreAxes(
        variables,
        query=placed((*shared, *own), new, wide[0]),
        key=placed(shared, seen, wide[1]),
        value=placed(shared, seen, wide[2]),
        output=placed((*shared, *own), new, wide[2]),
        bias=_bias_of_fused(graph, fused, (batch, (*shared, *own), new, seen)),
    )


def _width_of_head(
    shape: tuple[Expression, ...], heads: Expression | None, flat: bool
) -> Expression | None:
    if not flat:
        return shape[-1]
    return None if heads is None else sizes.quotient(shape[-1], heads)


def _bias_of_fused(
    graph: Graph, fused: op.FusedAttention, scores: Placement
) -> tuple[Placement, ...]:
    """Axes of a mask that is broadcast to the scores."""
    if fused.bias is None:
        return ()
    shape = graph.sizes(fused.bias)
    if shape is None or len(shape) > len(scores):
        return (scores,)
    own = scores[len(scores) - len(shape) :]
    return (tuple(() if size == 1 else axis for size, axis in zip(shape, own)),)


# A softmax


def _from_softmax(graph: Graph, node: Node, softmax: op.Softmax) -> ReadCore | None:
    variables = Variables()
    made = graph.results(node)[0]
    shape = graph.sizes(softmax.data)
    axes = None if not shape else _score_axes(variables, shape)
    start = _At(softmax.data, axes)
    if axes is None:
        start = start.lost(softmax.data, "the shape of the scores is not known", node)
    scores = _scores(graph, variables, start, depth=12)
    weighted = _weighted_values(graph, made, depth=6)
    if scores is None or weighted is None:
        return None
    last, value = weighted
    query, key, scale = _peel_scales(graph, variables, scores)
    core = AttentionCore(
        query=query.value,
        key=key.value,
        value=value,
        output=graph.results(last)[0],
        scale=scale,
        first=scores.first,
        last=last,
        bias=scores.bias,
        sink=scores.sink,
        nodes=(*scores.nodes, node, last),
    )
    read = CoreAxes(
        variables,
        query.axes or (),
        key.axes or (),
        bias=scores.bias_axes,
        apart=query.apart or key.apart,
        at=query.lost_at or key.lost_at,
        code=query.code if query.apart else key.code,
    )
    read = _with_values(graph, core, made, axes, read)
    return _without_widening(graph, variables, ReadCore(core, read))


def _score_axes(variables: Variables, shape: tuple[object, ...]) -> Placement:
    """A variable for each axis of the scores, the last of them the tokens attended to."""
    axes = [variables.new(f"z{place}", size) for place, size in enumerate(shape[:-1])]
    axes.append(variables.new(_KEYS, shape[-1]))
    variables.whole.update(variables.sizes)
    return tuple(axes)


def _with_values(
    graph: Graph, core: AttentionCore, made: Value, axes: Placement | None, read: CoreAxes
) -> CoreAxes:
    """The axes of values and output, by the way from the probabilities to their product."""
    if read.apart or axes is None:
        return read
    if core.sink is not None:  # its column is none of the keys
        axes = (*axes[:-1], read.variables.new(_KEYS, read.variables.sizes[_KEYS]))
    try:
        value, output = _value_axes(graph, core, made, axes, read.variables)
    except ApartError as error:
        why = f"between softmax and values: {error}"
        return replace(read, apart=why, at=core.last, code=error.code)
    return replace(read, value=value, output=output)


def _value_axes(
    graph: Graph, core: AttentionCore, made: Value, axes: Placement, variables: Variables
) -> tuple[Placement, Placement]:
    """Axes of values and output, told in the variables of the scores."""
    product = graph.operation(core.last)
    shape = graph.sizes(core.output)
    assert isinstance(product, op.MatMul)
    if product.axes is None or shape is None:
        raise UnknownShapeError("which axes are multiplied is not known")
    own = Variables()
    result = tuple(own.new(f"u{place}", size) for place, size in enumerate(shape))
    own.whole.update(own.sizes)
    step = Step(graph, own, core.last, core.output, result)
    labels = product.axes
    summed = [label for label in labels.first if label not in labels.result]
    if len(summed) != 1:
        raise ApartError("more than one axis is summed over")
    seen = own.new("y", (graph.sizes(product.left) or ())[labels.first.index(summed[0])])
    own.whole.add("y")
    left = _with_summed(step, product.left, labels.first, labels, summed[0], seen)
    right = _with_summed(step, product.right, labels.second, labels, summed[0], seen)
    found = _back_to(graph, own, _At(product.left, left), made, core.sink is not None)
    names = _named(variables, own, found, axes)
    value = tuple(_renamed(own.current(axis), names, variables) for axis in right)
    output = tuple(_renamed(own.current(axis), names, variables) for axis in result)
    return value, output


def _with_summed(
    step: Step, value: Value, labels: tuple[str, ...], axes: op.Contraction, summed: str, seen: Axis
) -> Placement:
    """The axes of an operand, the one summed over being those tokens that are attended to."""
    return product_axes(step, value, labels, axes, {summed: seen})


def _back_to(graph: Graph, variables: Variables, at: _At, end: Value, sink: bool) -> Placement:
    """Walk back from the product with the values to the probabilities; nothing may be mixed.

    With a ``sink`` its column, the last one, is left out on the way.
    """
    axes = at.axes
    value = at.value
    assert axes is not None
    while value is not end:
        node = graph.producer(value)
        if node is None:
            raise ApartError(f"{value.name} is an input")
        operation = graph.operation(node)
        step = Step(graph, variables, node, value, axes)
        if isinstance(operation, op.Select):
            axes = broadcast_axes(step, operation.other)
            value = operation.other
            continue
        if sink and _drops_last(graph, operation, value):
            assert isinstance(operation, op.Layout)
            (value,), sink = operation.data, False
            continue
        read = operands(step, operation)
        if read is None or len(read) != 1:
            raise ApartError(f"{graph.label(node)} is not followed")
        value, axes = read[0].value, read[0].axes
    return axes


def _drops_last(graph: Graph, operation: op.Operation, value: Value) -> bool:
    """Whether a slice leaves out the last column and nothing else."""
    if not isinstance(operation, op.Layout) or not isinstance(operation.move, op.Along):
        return False
    after, before = graph.sizes(value), graph.sizes(operation.data[0])
    if after is None or before is None or operation.move.axes != ((len(after) - 1, True),):
        return False
    return bool(sizes.difference(before[-1], after[-1]) == 1)


def _named(
    variables: Variables, own: Variables, found: Placement, axes: Placement
) -> dict[str, str]:
    """Which variable of the scores each one of the product with the values is."""
    names: dict[str, str] = {}
    for of_scores, of_product in zip(axes, found):
        place = 0
        while place < len(new := own.current(of_product)):
            old = variables.current(of_scores)
            if place >= len(old) or old[place].name is None or new[place].name is None:
                raise ApartError("the axes of the probabilities are mixed")
            if _aligned(variables, old[place], own, new[place]):
                names[new[place].name or ""] = old[place].name or ""
                place += 1
        if place < len(variables.current(of_scores)):
            raise ApartError("the axes of the probabilities are mixed")
    return names


def _aligned(variables: Variables, old: Atom, own: Variables, new: Atom) -> bool:
    """Whether two variables are of one size; if not, the larger one is split."""
    assert old.name is not None and new.name is not None
    if sizes.same(old.size, new.size):
        return True
    for names, whole, part in ((variables, old, new), (own, new, old)):
        rest = sizes.quotient(whole.size, part.size)
        if rest is not None and whole.name is not None:
            names.split(whole.name, part.size, rest)
            return False
    raise ApartError("the sizes of the probabilities' axes are not told to be the same")


def _renamed(axis: Axis, names: dict[str, str], variables: Variables) -> Axis:
    """The axis in the variables of the scores; what those do not have is the width of values."""
    for atom in axis:
        if atom.name is not None and atom.name not in names:
            names[atom.name] = f"v{len(variables.sizes)}"
            variables.new(names[atom.name], atom.size)
    return tuple(replace(atom, name=names[atom.name]) if atom.name else atom for atom in axis)


def _without_widening(graph: Graph, variables: Variables, read: ReadCore) -> ReadCore:
    """The core between a query and an output of 16 bits, where it computes in a wider type.

    Before:   query --> cast --> attention --> cast --> output

    Decomposed attentions say so themselves; the operator sums in float32 of its own accord.
    """
    core = read.core
    node = graph.producer(core.query)
    widening = None if node is None else graph.operation(node)
    readers = graph.consumers(core.output)
    if not isinstance(widening, op.Cast) or len(readers) != 1 or graph.is_output(core.output):
        return read
    output = graph.results(readers[0])[0]
    narrow = graph.dtype(widening.data)
    narrows = isinstance(graph.operation(readers[0]), op.Cast) and graph.dtype(output) == narrow
    if not narrows or graph.dtype(core.query).itemsize <= narrow.itemsize:
        return read
    query, factor = _peel_scale(graph, variables, _At(widening.data, read.axes.query))
    wide = replace(
        core,
        query=query.value,
        output=output,
        last=readers[0],
        scale=core.scale * factor,
        nodes=(*core.nodes, readers[0]),
    )
    return ReadCore(wide, read.axes)


# From the softmax back


def _peel_scales(graph: Graph, variables: Variables, scores: _Scores) -> tuple[_At, _At, float]:
    """Take constant factors off both operands of the product: they belong to the scale."""
    query, on_query = _peel_scale(graph, variables, scores.query)
    key, on_key = _peel_scale(graph, variables, scores.key)
    return query, key, scores.scale * on_query * on_key


def _peel_scale(graph: Graph, variables: Variables, at: _At) -> tuple[_At, float]:
    factor = 1.0
    while True:
        node = graph.producer(at.value)
        operation = None if node is None else graph.operation(node)
        if node is None or not isinstance(operation, op.Scaled):
            return at, factor
        at, factor = _through(graph, variables, at, node, operation.data), factor * operation.factor


def _through(graph: Graph, variables: Variables, at: _At, node: Node, operand: Value) -> _At:
    """One operand of an elementwise operation, with its axes."""
    if at.axes is None:
        return replace(at, value=operand)
    try:
        axes = broadcast_axes(Step(graph, variables, node, at.value, at.axes), operand)
    except ApartError as error:
        return at.lost(operand, error, node)
    return replace(at, value=operand, axes=axes)


def _scores(graph: Graph, variables: Variables, at: _At, depth: int) -> _Scores | None:
    """Walk back from the scores to the product of query and key."""
    node = graph.producer(at.value)
    if node is None or depth == 0:
        return None
    found = _scores_step(graph, variables, at, node, depth - 1)
    return None if found is None else replace(found, nodes=(*found.nodes, node))


def _scores_step(
    graph: Graph, variables: Variables, at: _At, node: Node, depth: int
) -> _Scores | None:
    def back(value: Value) -> _Scores | None:
        return _scores(graph, variables, there(value), depth)

    def there(value: Value) -> _At:
        return _through(graph, variables, at, node, value)

    match graph.operation(node):
        case op.MatMul() as product if product.addend is None:
            return _product(graph, variables, at, node, product)
        case op.Scaled(data, factor):
            found = back(data)
            # a factor outside a bias would scale the bias too: no exporter does that
            usable = found is not None and not found.bias
            return replace(found, scale=found.scale * factor) if found and usable else None
        case op.Cast(data):
            return back(data)
        case op.Add(left, right):
            for scores, bias in ((left, right), (right, left)):
                found = back(scores)
                if found is not None:
                    return _with_bias(found, BiasTerm("additive", bias), there(bias))
            return None
        case op.Select(condition, chosen, other):
            for scores, fill, kind in ((chosen, other, "boolean"), (other, chosen, "blocked")):
                level = _level(graph, fill)
                found = None if level is None else back(scores)
                if found is not None and level is not None:
                    term = BiasTerm(kind, condition, fill=level)
                    return _with_bias(found, term, there(condition))
            return None
        case op.Subtract(left, right):
            return back(left) if _is_row_maximum(graph, right) else None
        case op.Layout() as layout:
            return _through_layout(graph, variables, at, node, layout, depth)
        case _:
            return None


def _product(
    graph: Graph, variables: Variables, at: _At, node: Node, product: op.MatMul
) -> _Scores:
    """Query and key, told apart by who has the tokens attended to."""
    left, right = replace(at, value=product.left), replace(at, value=product.right)
    if at.axes is not None:
        try:
            left, right = _operands_of_product(graph, variables, at, node, product)
        except ApartError as error:
            left, right = left.lost(left.value, error, node), right
    return _Scores(first=node, query=left, key=right, scale=product.factor)


def _operands_of_product(
    graph: Graph, variables: Variables, at: _At, node: Node, product: op.MatMul
) -> tuple[_At, _At]:
    assert at.axes is not None
    if product.axes is None:
        raise UnknownShapeError("which axes are multiplied is not known")
    step = Step(graph, variables, node, at.value, at.axes)
    axes = product.axes
    left = _At(product.left, product_axes(step, product.left, axes.first, axes))
    right = _At(product.right, product_axes(step, product.right, axes.second, axes))
    keys = set(variables.names(_KEYS))
    of_left, of_right = (_names_in(variables, each.axes or ()) & keys for each in (left, right))
    if of_left and not of_right:
        left, right = right, left
    elif of_left or (keys and not of_right and variables.sizes.get(_KEYS, 1) != 1):
        raise ApartError("query and keys cannot be told apart")
    return left, right


def _names_in(variables: Variables, axes: Placement) -> set[str]:
    return {name for axis in axes for atom in variables.current(axis) for name in atom.variables}


def _with_bias(found: _Scores, term: BiasTerm, at: _At) -> _Scores:
    query = found.query
    if at.axes is None and not query.apart:
        query = replace(at, value=query.value)
    axes = (*found.bias_axes, at.axes or ())
    return replace(found, query=query, bias=(*found.bias, term), bias_axes=axes)


def _level(graph: Graph, fill: Value) -> float | None:
    """The number that a mask puts in the place of scores, if it means: do not attend."""
    content = graph.constant(fill)
    level = float(content.reshape(-1)[0]) if content is not None and content.size == 1 else 0.0
    return level if level <= _NEVER else None


def _is_row_maximum(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    return node is not None and isinstance(graph.operation(node), op.RowMaximum)


def _through_layout(
    graph: Graph, variables: Variables, at: _At, node: Node, layout: op.Layout, depth: int
) -> _Scores | None:
    """The scores moved as a whole, or with one more column: the sink."""
    data = layout.data
    if len(data) == 1:
        return _scores(graph, variables, _moved(graph, variables, at, node, layout), depth)
    if len(data) != 2:
        return None
    sink = _head_vector(graph, data[1])
    inner = _without_column(graph, variables, at, node, layout)
    found = None if sink is None else _scores(graph, variables, inner, depth)
    if found is None or found.sink is not None:
        return None
    return replace(found, sink=sink)


def _moved(graph: Graph, variables: Variables, at: _At, node: Node, layout: op.Layout) -> _At:
    if at.axes is None:
        return replace(at, value=layout.data[0])
    try:
        (operand,) = operands(Step(graph, variables, node, at.value, at.axes), layout) or (None,)
    except ApartError as error:
        return at.lost(layout.data[0], error, node)
    assert isinstance(operand, Operand)
    return replace(at, value=operand.value, axes=operand.axes)


def _without_column(
    graph: Graph, variables: Variables, at: _At, node: Node, layout: op.Layout
) -> _At:
    """The scores in front of a column of sinks: their tokens are one fewer."""
    scores = layout.data[0]
    if at.axes is None:
        return replace(at, value=scores)
    shape, column = graph.sizes(scores), graph.sizes(layout.data[1])
    last = len(at.axes) - 1
    keys = shape is not None and column is not None and column[-1] == 1
    if not keys or shape is None or layout.move != op.Joined(last):
        return at.lost(scores, "what is joined to the scores is no column of sinks", node)
    variables.sizes[_KEYS] = shape[-1]
    axes = (*at.axes[:-1], variables.new(_KEYS, shape[-1]))
    return replace(at, value=scores, axes=axes)


def _head_vector(graph: Graph, value: Value) -> Value | None:
    """The stored vector behind a column of sinks, through reshapes and broadcasts."""
    while not graph.is_constant(value):
        node = graph.producer(value)
        if node is None:
            return None
        match graph.operation(node):
            case op.Layout((data,)) | op.Broadcast(data) | op.Cast(data):
                value = data
            case _:
                return None
    return value


# From the softmax on


def _weighted_values(graph: Graph, value: Value, depth: int) -> tuple[Node, Value] | None:
    """Walk forward from the probabilities to their product with the values."""
    if depth == 0:
        return None
    for node in graph.consumers(value):
        match graph.operation(node):
            case op.MatMul() as product if product.left is value and product.factor == 1.0:
                return node, product.right
            case op.Cast() | op.Layout():
                found = _weighted_values(graph, graph.results(node)[0], depth - 1)
                if found is not None:
                    return found
            case op.Select() as select if _makes_nan_zero(graph, select, value):
                found = _weighted_values(graph, graph.results(node)[0], depth - 1)
                if found is not None:
                    return found
            case _:
                pass
    return None


def _makes_nan_zero(graph: Graph, select: op.Select, value: Value) -> bool:
    """Whether a selection is ``value``, but 0 where it is not a number.

    Any other selection among probabilities weighs the values differently: by a threshold or a
    window, perhaps, that a small example does not reach.
    """
    test = graph.producer(select.condition)
    operation = None if test is None else graph.operation(test)
    if not isinstance(operation, op.IsNan) or operation.data is not value:
        return False
    fill = graph.constant(select.chosen)
    return select.other is value and fill is not None and not fill.any()
