"""Rows that stored numbers are multiplied into behind their cache.

    past --+
           +-- concat --> c_kv --- Mul, stored --> c_kv times factors --- linear --> keys, values
    new  --+              these                    not these

Both are as narrow as can be. With those of the cache nothing is computed for the rows of the past,
and the factors belong to the matrices behind them. ``k_pe`` has none: its factors stay before it.
"""

from __future__ import annotations

from dataclasses import replace

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.matching.shared_rows import SharedRows


def before_factors(graph: Graph, rows: SharedRows) -> SharedRows:
    """The rows before stored numbers are multiplied into what a cache holds of them."""
    back = {value: _before(graph, rows, value) for value in rows.shared}
    return replace(
        rows,
        of_values=tuple(back[value] for value in rows.of_values),
        of_keys=tuple(back.get(value, value) for value in rows.of_keys),
    )


def _before(graph: Graph, rows: SharedRows, value: Value) -> Value:
    """What a value is before the factors nearest to its cache; itself where there are none."""
    joined = {join.joined for join in rows.region.joins}
    found = below = value
    while below not in joined:
        node, parts = graph.producer(below), rows.region.made_of.get(below, ())
        if node is None or len(parts) != 1:
            return value
        operation, above = graph.operation(node), below
        (below,) = parts
        if isinstance(operation, op.Scaled | op.ScaledBy) and _as_wide(graph, below, above):
            found = below
        elif not isinstance(operation, op.Layout):
            return value
    return found


def _as_wide(graph: Graph, one: Value, other: Value) -> bool:
    first, second = graph.sizes(one), graph.sizes(other)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(sizes.same(*pair) for pair in zip(first, second))
