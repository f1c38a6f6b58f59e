"""From the softmax on: the product of the probabilities with the values, and its axes."""

from __future__ import annotations

from dataclasses import replace

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Atom, Axis, Placement, UnknownShapeError, Variables
from mla_opt.matching.axis_rules import Step, broadcast_axes, operands, product_axes
from mla_opt.matching.core_axes import KEYS, At, CoreAxes, is_keys, is_named
from mla_opt.sites import AttentionCore

_Ends = tuple[int, int]
"""By how many places an axis is longer at its front and at its back."""


def weighted_values(
    graph: Graph, value: Value, depth: int, before: tuple[Value, ...] = ()
) -> tuple[Node, Value] | None:
    """Walk forward from the probabilities to their product with the values.

    ``before`` are the probabilities on the way to ``value``.
    """
    if depth == 0:
        return None
    for node in graph.consumers(value):
        match graph.operation(node):
            case op.MatMul() as product if _is_plain(product):
                probabilities, values = _operands(product, value)
                if probabilities is value:
                    return node, values
            case op.Cast() | op.Layout() | op.NanToZero():
                found = weighted_values(graph, graph.results(node)[0], depth - 1, (*before, value))
                if found is not None:
                    return found
            case op.Select() as select if _keeps(graph, select, value, before):
                found = weighted_values(graph, graph.results(node)[0], depth - 1, (*before, value))
                if found is not None:
                    return found
            case _:
                pass
    return None


def _is_plain(product: op.MatMul) -> bool:
    return product.factor == 1.0 and product.addend is None


def _operands(product: op.MatMul, value: Value) -> tuple[Value, Value]:
    """Operands of a product, ``value`` first if it is one of them."""
    if product.right is value:
        return product.right, product.left
    return product.left, product.right


def _keeps(graph: Graph, select: op.Select, value: Value, before: tuple[Value, ...]) -> bool:
    """Whether a selection is ``value``, but 0 where it is not a number.

    No probability is infinite. Any other selection among probabilities weighs the values
    differently: by a threshold or a window, perhaps, that a small example does not reach.
    """
    test = graph.producer(select.condition)
    operation = None if test is None else graph.operation(test)
    if isinstance(operation, op.IsInfinite):
        return select.other is value and operation.data in (*before, value)
    if not isinstance(operation, op.IsNan) or operation.data is not value:
        return False
    fill = graph.constant(select.chosen)
    return select.other is value and fill is not None and not fill.any()


def with_values(
    graph: Graph,
    core: AttentionCore,
    made: Value,
    axes: Placement | None,
    read: CoreAxes,
    *,
    sink_first: bool,
) -> CoreAxes:
    """The axes of values and output, by the way from the probabilities to their product.

    ``sink_first`` says where the column of a sink is, if there is one.
    """
    if read.apart or axes is None:
        return read
    if core.sink is not None:  # its column is none of the keys
        keys = read.variables.new(KEYS, read.variables.sizes[KEYS])
        axes = tuple(keys if is_keys(axis) else axis for axis in axes)
    try:
        drops = None if core.sink is None else (-1, 0) if sink_first else (0, -1)
        value, output = _value_axes(graph, core, made, axes, read.variables, drops)
    except ApartError as error:
        why = f"between softmax and values: {error}"
        return replace(read, apart=why, at=core.last, code=error.code)
    return replace(read, value=value, output=output)


def _value_axes(
    graph: Graph,
    core: AttentionCore,
    made: Value,
    axes: Placement,
    variables: Variables,
    drops: _Ends | None,
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
    values, weights = _operands(product, core.value)
    labels = product.axes
    if values is product.left:
        labels = op.Contraction(labels.second, labels.first, labels.result)
    summed = [label for label in labels.first if label not in labels.result]
    if len(summed) != 1:
        raise ApartError("more than one axis is summed over")
    seen = own.new("y", (graph.sizes(weights) or ())[labels.first.index(summed[0])])
    own.whole.add("y")
    left = _with_summed(step, weights, labels.first, labels, summed[0], seen)
    right = _with_summed(step, values, labels.second, labels, summed[0], seen)
    found = _back_to(graph, own, At(weights, left), made, drops)
    names = _named(variables, own, found, axes)
    if {names[name] for name in own.names("y") if name in names} != _names_of_keys(variables):
        raise ApartError("the values are summed over another axis than the softmax")
    value = tuple(_renamed(own.current(axis), names, variables) for axis in right)
    output = tuple(_renamed(own.current(axis), names, variables) for axis in result)
    return value, output


def _names_of_keys(variables: Variables) -> set[str]:
    """The variables of the tokens attended to; none where that is one token."""
    return set(variables.names(KEYS)) if variables.sizes.get(KEYS, 1) != 1 else set()


def _with_summed(
    step: Step, value: Value, labels: tuple[str, ...], axes: op.Contraction, summed: str, seen: Axis
) -> Placement:
    """The axes of an operand, the one summed over being those tokens that are attended to."""
    return product_axes(step, value, labels, axes, {summed: seen})


def _back_to(
    graph: Graph, variables: Variables, at: At, end: Value, drops: _Ends | None
) -> Placement:
    """Walk back from the product with the values to the probabilities; nothing may be mixed.

    The column of a sink is left out on the way, at that end which ``drops`` says.
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
        if isinstance(operation, op.Select | op.NanToZero):
            value = operation.other if isinstance(operation, op.Select) else operation.data
            axes = broadcast_axes(step, value)
            continue
        if drops and _drops(graph, operation, value, drops) and is_named(axes[-1], "y"):
            assert isinstance(operation, op.Layout)
            (value,), drops = operation.data, None
            continue
        read = operands(step, operation)
        if read is None or len(read) != 1:
            raise ApartError(f"{graph.label(node)} is not followed")
        value, axes = read[0].value, read[0].axes
    return axes


def _drops(graph: Graph, operation: op.Operation, value: Value, ends: _Ends) -> bool:
    """Whether the columns that a slice leaves out are those at the ends of the last axis."""
    if not isinstance(operation, op.Layout) or not isinstance(operation.move, op.Along):
        return False
    after, before = graph.sizes(value), graph.sizes(operation.data[0])
    axes = operation.move.axes
    if after is None or before is None or len(axes) != 1 or axes[0][0] != len(after) - 1:
        return False
    if operation.move.ends is not None:
        return operation.move.ends == ends
    from_front = axes[0][1] and ends == (0, -1)
    return from_front and bool(sizes.difference(before[-1], after[-1]) == 1)


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
