"""What aten's layout operators do to axes, at every size, in the words of `operations.Move`.

Each function returns the move of one node, or says in words why it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.torch import writes
from mla_opt.graphs.torch.arguments import argument, as_value, from_front, rank_at
from mla_opt.graphs.torch.lifted_program import expression, symbolic_shape
from mla_opt.handles import Value

Move = op.Move | str

_OF_SIZES = "which places it takes follows from sizes, and differs from call to call"


def _are_numbers(*places: Any) -> bool:
    """Whether places are the same in every call."""
    return all(place is None or isinstance(place, int) for place in places)


def move_of(name: str, node: fx.Node) -> Move:
    """Return what a layout operator does to the axes of its data, or why that is not known."""
    rule = RULES.get(name)
    return f"{name} has no rule" if rule is None else rule(node)


def _same(node: fx.Node) -> Move:
    return op.Along(())


def _reshape(node: fx.Node) -> Move:
    return op.Reshaped()


def _permute(node: fx.Node) -> Move:
    rank = rank_at(node)
    return op.Permuted(tuple(from_front(axis, rank) for axis in argument(node, 1, "dims")))


def _transpose(node: fx.Node) -> Move:
    rank = rank_at(node)
    first, second = (
        from_front(argument(node, place, name), rank) for place, name in ((1, "dim0"), (2, "dim1"))
    )
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return op.Permuted(tuple(order))


def _transposed_last(node: fx.Node) -> Move:
    rank = rank_at(node)
    return op.Permuted((*range(rank - 2), rank - 1, rank - 2))


def _turned(node: fx.Node) -> Move:
    return op.Permuted(tuple(reversed(range(rank_at(node)))))


def _move_axis(node: fx.Node) -> Move:
    rank = rank_at(node)
    source, target = argument(node, 1, "source"), argument(node, 2, "destination")
    sources = [from_front(each, rank) for each in _listed(source)]
    targets = [from_front(each, rank) for each in _listed(target)]
    rest = iter(axis for axis in range(rank) if axis not in sources)
    places = dict(zip(targets, sources))
    return op.Permuted(tuple(places[at] if at in places else next(rest) for at in range(rank)))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _slice(node: fx.Node) -> Move:
    axis = from_front(argument(node, 1, "dim", 0), rank_at(node))
    start, end, step = (
        argument(node, place, name) for place, name in ((2, "start"), (3, "end"), (4, "step"))
    )
    if not _are_numbers(start, step):
        return _OF_SIZES
    front, count = start in (None, 0) and step in (None, 1), None
    if front:
        count = _first_places(node, axis, end)
    return op.Along(((axis, front),), count, _cut_ends(node, axis, start or 0, step or 1))


def _cut_ends(node: fx.Node, axis: int, start: int, step: int) -> tuple[int, int] | None:
    """How many places a slice leaves out at the ends of an axis, as numbers below 0."""
    before, after = symbolic_shape(node.all_input_nodes[0]), symbolic_shape(node)
    if before is None or after is None or start < 0 or step != 1:
        return None
    behind = sizes.difference(after[axis] + start, before[axis])
    return (-start, behind) if isinstance(behind, int) and behind <= 0 else None


def _first_places(node: fx.Node, axis: int, end: Any) -> Value | int | None:
    """How many places a slice takes, where its end says that: it is not beyond, nor negative."""
    shape = symbolic_shape(node)
    value = end.meta.get("val") if isinstance(end, fx.Node) else end
    if shape is None or not isinstance(value, (int, torch.SymInt)):
        return None
    if not sizes.same(shape[axis], expression(value)):
        return None
    return as_value(end) if isinstance(end, fx.Node) else int(end)


def _narrow(node: fx.Node) -> Move:
    axis, start = from_front(argument(node, 1, "dim"), rank_at(node)), argument(node, 2, "start")
    if not _are_numbers(start):
        return _OF_SIZES
    front = start == 0
    count = _first_places(node, axis, argument(node, 3, "length")) if front else None
    return op.Along(((axis, front),), count, _cut_ends(node, axis, start or 0, 1))


def _parts(node: fx.Node) -> Move:
    if not _are_numbers(*_listed(argument(node, 1, "split_size"))):
        return _OF_SIZES
    return op.Along(((from_front(argument(node, 2, "dim", 0), rank_at(node)), False),))


def _picked(node: fx.Node) -> Move:
    if not _are_numbers(argument(node, 2, "index")):
        return _OF_SIZES
    return op.Picked(from_front(argument(node, 1, "dim", 0), rank_at(node)))


def _along_listed(node: fx.Node) -> Move:
    return op.Along(
        tuple((from_front(axis, rank_at(node)), False) for axis in argument(node, 1, "dims"))
    )


def _roll(node: fx.Node) -> Move:
    axes = argument(node, 2, "dims", ())
    if not _are_numbers(*_listed(argument(node, 1, "shifts"))):
        return _OF_SIZES
    if not axes:
        return "it rolls all axes as one"
    return op.Along(tuple((from_front(axis, rank_at(node)), False) for axis in _listed(axes)))


def _index_select(node: fx.Node) -> Move:
    return op.Along(((from_front(argument(node, 1, "dim"), rank_at(node)), False),))


def _gathered(node: fx.Node) -> Move:
    """Along other axes from the front, as far as there are indices."""
    rank = rank_at(node)
    axis = from_front(argument(node, 1, "dim"), rank)
    return op.Along(tuple((place, place != axis) for place in range(rank)))


def _pad(node: fx.Node) -> Move:
    """Amounts are of the last axis first, before and after in turn."""
    amounts, rank = argument(node, 1, "pad"), rank_at(node)
    pairs = [(amounts[at], amounts[at + 1]) for at in range(0, len(amounts), 2)]
    if not _are_numbers(*(before for before, _ in pairs)):
        return _OF_SIZES
    padded = [(rank - 1 - at, pair) for at, pair in enumerate(pairs) if pair != (0, 0)]
    axes = tuple((axis, before == 0) for axis, (before, _) in padded)
    known = len(padded) == 1 and _are_numbers(*padded[0][1])
    return op.Along(axes, None, padded[0][1] if known else None)


def _concat(node: fx.Node) -> Move:
    rank = len(symbolic_shape(node) or ())
    return op.Joined(from_front(argument(node, 1, "dim", 0), rank))


def _stacked(node: fx.Node) -> Move:
    return op.Stacked(from_front(argument(node, 1, "dim", 0), len(symbolic_shape(node) or ())))


def _indexed(node: fx.Node) -> Move:
    """By stored places of one axis: those in front of it are whole."""
    *ahead, index = argument(node, 1, "indices")
    if index is None or any(each is not None for each in ahead):
        return "it takes places of more than one axis"
    return (
        op.Along(((len(ahead), False),))
        if len(symbolic_shape(index) or ()) == 1
        else op.Picked(len(ahead))
    )


def _slice_scatter(node: fx.Node) -> Move:
    rank = rank_at(node)
    axis = from_front(argument(node, 2, "dim", 0), rank)
    start, step = argument(node, 3, "start"), argument(node, 5, "step", 1)
    if isinstance(start, fx.Node) and step == 1:
        return writes.of_run(node, axis, start)
    if not _are_numbers(start, step):
        return _OF_SIZES
    front = start in (None, 0) and step == 1
    return op.Written(tuple((place, place != axis or front) for place in range(rank)))


def _select_scatter(node: fx.Node) -> Move:
    rank = rank_at(node)
    if not _are_numbers(argument(node, 3, "index")):
        return _OF_SIZES
    axis = from_front(argument(node, 2, "dim"), rank)
    return op.Written(tuple((place, True) for place in range(rank) if place != axis))


RULES: dict[str, Callable[[fx.Node], Move]] = {
    **writes.RULES,
    **dict.fromkeys(
        ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout"), _same
    ),
    **dict.fromkeys(("_to_copy", "to", "type_as", "convert_element_type", "copy"), _same),
    **dict.fromkeys(("expand", "expand_copy", "broadcast_to"), _same),
    **dict.fromkeys(
        ("_unsafe_view", "view", "view_copy", "reshape", "flatten", "unflatten"), _reshape
    ),
    **dict.fromkeys(("squeeze", "unsqueeze"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _turned,
    "mT": _transposed_last,
    "mH": _transposed_last,
    "adjoint": _transposed_last,
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
    "gather": _gathered,
    "index_select": _index_select,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "cat": _concat,
    "concat": _concat,
    "stack": _stacked,
    "index": _indexed,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
}
