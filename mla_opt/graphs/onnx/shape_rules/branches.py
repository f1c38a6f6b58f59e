"""Shapes of what one of two branches returns."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.shape_rules.facts import Facts, Shape, attribute


def of_conditional(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``If``: the sizes on which both branches agree."""
    branches = [attribute(node, name) for name in ("then_branch", "else_branch")]
    if any(branch is None for branch in branches):
        return ()
    pairs = zip(*(branch.outputs for branch in branches))
    return tuple(_agreed(facts, *map(facts.shape, pair)) for pair in pairs)


def _agreed(facts: Facts, one: Shape | None, other: Shape | None) -> Shape | None:
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple(
        size if sizes.same(size, another) else facts.unknown() for size, another in zip(one, other)
    )
