"""What aten's layout operators do to axes, at every size, in the words of `operations.Move`.

Each function returns the move of one node, or says in words why it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs.torch.lifted_program import symbolic_shape

Move = op.Move | str


def move_of(name: str, node: fx.Node) -> Move:
    """Return what a layout operator does to the axes of its data, or why that is not known."""
    rule = RULES.get(name)
    return f"{name} has no rule" if rule is None else rule(node)


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by its place or its name."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def _rank(node: fx.Node, place: int = 0) -> int:
    value = argument(node, place, "self")
    return len(symbolic_shape(value) or ()) if isinstance(value, fx.Node) else 0


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _same(node: fx.Node) -> Move:
    return op.Along(())


def _reshape(node: fx.Node) -> Move:
    return op.Reshaped()


def _permute(node: fx.Node) -> Move:
    rank = _rank(node)
    return op.Permuted(tuple(_axis(axis, rank) for axis in argument(node, 1, "dims")))


def _transpose(node: fx.Node) -> Move:
    rank = _rank(node)
    first, second = (
        _axis(argument(node, place, name), rank) for place, name in ((1, "dim0"), (2, "dim1"))
    )
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return op.Permuted(tuple(order))


def _turned(node: fx.Node) -> Move:
    return op.Permuted(tuple(reversed(range(_rank(node)))))


def _move_axis(node: fx.Node) -> Move:
    rank = _rank(node)
    source, target = argument(node, 1, "source"), argument(node, 2, "destination")
    sources = [_axis(each, rank) for each in _listed(source)]
    targets = [_axis(each, rank) for each in _listed(target)]
    rest = iter(axis for axis in range(rank) if axis not in sources)
    places = dict(zip(targets, sources))
    return op.Permuted(tuple(places[at] if at in places else next(rest) for at in range(rank)))


def _listed(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _slice(node: fx.Node) -> Move:
    axis = _axis(argument(node, 1, "dim", 0), _rank(node))
    start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
    return op.Along(((axis, start in (None, 0) and step == 1),))


def _narrow(node: fx.Node) -> Move:
    return op.Along(
        ((_axis(argument(node, 1, "dim"), _rank(node)), argument(node, 2, "start") == 0),)
    )


def _parts(node: fx.Node) -> Move:
    return op.Along(((_axis(argument(node, 2, "dim", 0), _rank(node)), False),))


def _picked(node: fx.Node) -> Move:
    return op.Picked(_axis(argument(node, 1, "dim", 0), _rank(node)))


def _along_listed(node: fx.Node) -> Move:
    return op.Along(tuple((_axis(axis, _rank(node)), False) for axis in argument(node, 1, "dims")))


def _roll(node: fx.Node) -> Move:
    axes = argument(node, 2, "dims", ())
    if not axes:
        return "it rolls all axes as one"
    return op.Along(tuple((_axis(axis, _rank(node)), False) for axis in _listed(axes)))


def _index_select(node: fx.Node) -> Move:
    return op.Along(((_axis(argument(node, 1, "dim"), _rank(node)), False),))


def _pad(node: fx.Node) -> Move:
    """Amounts are of the last axis first, before and after in turn."""
    amounts, rank = argument(node, 1, "pad"), _rank(node)
    pairs = [(amounts[at], amounts[at + 1]) for at in range(0, len(amounts), 2)]
    return op.Along(
        tuple(
            (rank - 1 - at, before == 0)
            for at, (before, after) in enumerate(pairs)
            if (before, after) != (0, 0)
        )
    )


def _concat(node: fx.Node) -> Move:
    rank = len(symbolic_shape(node) or ())
    return op.Joined(_axis(argument(node, 1, "dim", 0), rank))


def _slice_scatter(node: fx.Node) -> Move:
    rank = _rank(node)
    axis = _axis(argument(node, 2, "dim", 0), rank)
    start, step = argument(node, 3, "start"), argument(node, 5, "step", 1)
    front = start in (None, 0) and step == 1
    return op.Written(tuple((place, place != axis or front) for place in range(rank)))


def _select_scatter(node: fx.Node) -> Move:
    rank = _rank(node)
    axis = _axis(argument(node, 2, "dim"), rank)
    return op.Written(tuple((place, True) for place in range(rank) if place != axis))


RULES: dict[str, Callable[[fx.Node], Move]] = {
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout"), _same
    ),
    **dict.fromkeys(("_to_copy", "to", "type_as", "convert_element_type", "copy"), _same),
    **dict.fromkeys(("expand", "expand_copy"), _same),
    **dict.fromkeys(
        ("_unsafe_view", "view", "view_copy", "reshape", "flatten", "unflatten"), _reshape
    ),
    **dict.fromkeys(("squeeze", "unsqueeze"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _turned,
    "numpy_T": _turned,
    "movedim": _move_axis,
    "slice": _slice,
    "narrow": _narrow,
    "select": _picked,
    "unbind": _picked,
    "split": _parts,
    "split_with_sizes": _parts,
    "chunk": _parts,
    "flip": _along_listed,
    "roll": _roll,
    "index_select": _index_select,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "cat": _concat,
    "concat": _concat,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
