"""A Slice of a Concat that is one of the tensors that were joined.

Before:   a, b --> Concat --> Slice --> ...        (the slice is where b begins and ends)
After:    b --> ...
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.sizes import Expression


def part_of_concat(
    concat: ir.Node,
    along: Sequence[Expression],
    start: Expression,
    end: Expression,
) -> ir.Value | None:
    """The operand between two places of a Concat; ``None`` where they are not its ends.

    Args:
        concat: the node.
        along: sizes of its operands on the axis that it joins, in order.
        start: the first element that is taken; negative ones count from the end.
        end: the element behind the last one; likewise, and never beyond the end.
    """
    total: Expression = sum(along, start=0)
    first, last = (_from_front(place, total) for place in (start, end))
    before: Expression = 0
    for operand, size in zip(concat.inputs, along):
        after = before + size
        if sizes.same(first, before) and sizes.same(last, after):
            return operand
        before = after
    return None


def _from_front(place: Expression, total: Expression) -> Expression:
    if not isinstance(place, int):
        return place
    if place < 0:
        return total + place
    return min(place, total) if isinstance(total, int) else place
