"""Rows that aten operators write to places of a tensor that are computed.

    index_put(x, [None, None, places], rows)    index_copy(x, 2, places, rows)
    scatter(x, 2, places of every number, rows)    slice_scatter(x, rows, 2, start, end)

Each function returns the move of one node, or says in words why it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.torch.arguments import argument, as_value, from_front, rank_at
from mla_opt.graphs.torch.lifted_program import expression, symbolic_shape

Move = op.Move | str

_OTHER_ROWS = "its rows are not as large as those of what it writes to, as far as can be told"
_NO_PLACES = "which places its indices are does not follow"


def of_run(node: fx.Node, axis: int, start: fx.Node) -> Move:
    """``slice_scatter`` from a computed place on: as many rows as there are."""
    rows = argument(node, 1, "src")
    return op.Put(axis, as_value(start), (), run=True) if _fits(node, axis, rows) else _OTHER_ROWS


def _fits(node: fx.Node, axis: int, rows: object) -> bool:
    """Whether rows are as large as the first operand, but for how many there are."""
    whole, other = (
        symbolic_shape(each) if isinstance(each, fx.Node) else None
        for each in (argument(node, 0, "self"), rows)
    )
    if whole is None or other is None or len(whole) != len(other):
        return False
    return all(
        place == axis or sizes.same(one, size)
        for place, (one, size) in enumerate(zip(whole, other))
    )


def _index_copy(node: fx.Node) -> Move:
    axis, index = from_front(argument(node, 1, "dim"), rank_at(node)), argument(node, 2, "index")
    if not _fits(node, axis, argument(node, 3, "source")):
        return _OTHER_ROWS
    return op.Put(axis, as_value(index), (axis,) * (symbolic_shape(index) != ()))


def _scatter(node: fx.Node) -> Move:
    """Every number of the rows has its own place; those of one row ought to have the same."""
    if node.target is not torch.ops.aten.scatter.src:
        return "it does more than to write rows"
    rank, index, rows = rank_at(node), argument(node, 2, "index"), argument(node, 3, "src")
    axis = from_front(argument(node, 1, "dim"), rank)
    if not _fits(node, axis, rows) or symbolic_shape(index) != symbolic_shape(rows):
        return _OTHER_ROWS
    return op.Put(axis, as_value(index), tuple(range(rank)))


def _index_put(node: fx.Node) -> Move:
    """Places of one axis, behind axes that are whole or counted from 0 on."""
    indices: Sequence[fx.Node | None] = argument(node, 1, "indices")
    given = [index for index in indices if index is not None]
    axis = len(indices) - 1
    if argument(node, 3, "accumulate", False) or any(map(_is_mask, given)) or not given:
        return "it does more than to write rows"
    if not _fits(node, axis, argument(node, 2, "values")):
        return _OTHER_ROWS
    *ahead, last = indices
    if last is None or (len(given) > 1 and len(given) < len(indices)):
        return _NO_PLACES
    rank = len(symbolic_shape(last) or ())
    if len(given) == 1:
        return op.Put(axis, as_value(last), (axis,)) if rank == 1 else _NO_PLACES
    if rank > axis + 1 or not all(
        index is not None and _counts(node, index, place, axis + 1)
        for place, index in enumerate(ahead)
    ):
        return _NO_PLACES
    return op.Put(axis, as_value(last), tuple(range(axis + 1 - rank, axis + 1)))


def _is_mask(index: fx.Node) -> bool:
    return bool(index.meta["val"].dtype in (torch.bool, torch.uint8))


def _counts(node: fx.Node, index: fx.Node, place: int, rank: int) -> bool:
    """Whether an index is the place on one of ``rank`` axes, from 0 to the end of it."""
    shape, whole = symbolic_shape(index) or (), symbolic_shape(argument(node, 0, "self")) or ()
    lined = (1,) * (rank - len(shape)) + shape
    alone = all(size == 1 or each == place for each, size in enumerate(lined))
    return alone and sizes.same(lined[place], whole[place]) and _is_range(index, whole[place])


_LINED = ("unsqueeze", "view", "reshape", "_to_copy", "to", "alias", "clone")
"""Operators that leave a range what it is, in another shape."""


def _is_range(index: fx.Node, size: object) -> bool:
    """Whether an index is ``0 .. size - 1``, with axes of size one beside."""
    while _name(index) in _LINED and isinstance(index.args[0], fx.Node):
        index = index.args[0]
    if _name(index) != "arange":
        return False
    bounds = [_count(each) for each in index.args]
    start, end, step = ((0, *bounds, 1), (*bounds, 1), (*bounds,))[len(bounds) - 1][:3]
    return start == 0 and step == 1 and sizes.same(end, size)


def _name(node: fx.Node) -> str:
    target = node.target
    known = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    return str(target._schema.name).rpartition("::")[2] if known else ""  # type: ignore[union-attr]


def _count(bound: object) -> object:
    """A bound as a number or an expression."""
    if not isinstance(bound, fx.Node):
        return bound
    value = bound.meta.get("val")
    return expression(value) if isinstance(value, (int, torch.SymInt)) else None


RULES: dict[str, Callable[[fx.Node], Move]] = {
    "index_copy": _index_copy,
    "index_put": _index_put,
    "scatter": _scatter,
}
