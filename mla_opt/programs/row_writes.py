"""Writes into a buffer in one form each.

Before:   view = slice(x, 1, start, end);  x' = slice_scatter(x, copy(view, rows), 1, start, end)
          x' = select_scatter(x, row, 1, place)
After:    x' = slice_scatter(x, rows, 1, start, end)
          x' = slice_scatter(x, unsqueeze(row, 1), 1, place, place + 1)

`copy` reads of what it copies to only the shape and type; where those are the same, it is what it
copies, for those who put it somewhere.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram, symbolic_shape
from mla_opt.graphs.torch.order import drop_dead

aten = torch.ops.aten

_READ = {
    aten.slice_scatter.default: 1,
    aten.select_scatter.default: 1,
    aten.index_put.default: 2,
    aten.index_copy.default: 3,
    aten.scatter.src: 3,
}
"""Operators that write one operand into another, and which it is."""


def unify_writes(program: LiftedProgram) -> None:
    """Rewrite every write of the graph."""
    for node in list(program.graph.nodes):
        if node.target in _READ:
            _read_what_is_copied(node)
        if node.target is aten.select_scatter.default and _is_computed(node.args[3]):
            _write_a_run(program, node)
    drop_dead(program.graph)


def _is_computed(place: Any) -> bool:
    return isinstance(place, fx.Node)


def _read_what_is_copied(write: fx.Node) -> None:
    place = _READ[write.target]  # type: ignore[index]
    copied = write.args[place] if place < len(write.args) else None
    while isinstance(copied, fx.Node) and copied.target is aten.copy.default:
        target, source = copied.args[:2]
        if not isinstance(source, fx.Node) or not _look_alike(target, source):
            return
        write.update_arg(place, source)
        copied = source


def _look_alike(one: Any, other: fx.Node) -> bool:
    first, second = one.meta["val"], other.meta["val"]
    same = (first.dtype, first.device) == (second.dtype, second.device)
    return same and symbolic_shape(one) == symbolic_shape(other)


def _write_a_run(program: LiftedProgram, write: fx.Node) -> None:
    whole, row, axis, place = write.args
    assert isinstance(row, fx.Node) and isinstance(place, fx.Node)
    with program.graph.inserting_before(write), program.fake_mode:
        rows = program.graph.call_function(aten.unsqueeze.default, (row, axis))
        rows.meta["val"] = aten.unsqueeze.default(row.meta["val"], axis)
        end = program.graph.call_function(operator.add, (place, 1))
        end.meta["val"] = place.meta["val"] + 1
        run = program.graph.call_function(
            aten.slice_scatter.default, (whole, rows, axis, place, end)
        )
    run.meta = dict(write.meta)
    write.replace_all_uses_with(run)
    program.graph.erase_node(write)
