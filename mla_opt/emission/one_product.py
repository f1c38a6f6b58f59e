"""A sum of products of queries and keys as one product, of the parts side by side.

q_1 @ k_1^T + f q_2 @ k_2^T    -->    [q_1 | f q_2] @ [k_1 | k_2]^T

A number of each head that the product is multiplied by goes to the query.
"""

from __future__ import annotations

from mla_opt.emission.layout import restored, standard
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Value
from mla_opt.sites.drafts import Draft
from mla_opt.sites.layout import KEYS, QUERY, SCORES, Layout, heads_of
from mla_opt.sites.products import HeadScale, SummedProducts


def draft_one_product(graph: Graph, found: SummedProducts) -> Draft:
    """Let what reads the sum read one product."""
    for value in (found.total, *(v for each in found.products for v in (each.query, each.key))):
        graph.dtype(value)  # noted for what is emitted
    builder = graph.builder(found.node, f"{found.total.name}/mla")
    query = builder.concat(_queries(builder, found), 3, "query_parts")
    keys = builder.concat(_keys(builder, found), 3, "key_parts")
    turned = builder.transpose(keys, (0, 1, 3, 2), "key_parts_transposed")
    product = builder.matmul(query, turned, "scores_of_parts")
    first = graph.producer(product)
    assert first is not None
    new = restored(builder, product, found.layout, SCORES, "scores")
    factor = found.products[0].factor
    if factor != 1.0:
        new = builder.multiply(new, builder.scalar_like(factor, product, "scale"), "scores_scaled")
    if graph.dtype(found.total) != graph.dtype(found.products[0].query):
        new = builder.cast_like(new, found.total, "scores_cast")
    graph.replace(found.total, new)
    return Draft(((found.total, new),), first)


def _queries(builder: Builder, found: SummedProducts) -> list[Value]:
    parts = []
    for each in found.products:
        part = standard(builder, each.query, each.query_layout, QUERY, "query_part")
        ratio = each.factor / found.products[0].factor
        if ratio != 1.0:
            number = builder.scalar_like(ratio, each.query, "part_scale")
            part = builder.multiply(part, number, "query_part_scaled")
        for scale in each.scales:
            part = _scaled_by_head(builder, part, scale)
        parts.append((part, each.query_layout))
    return _alike(builder, parts, found.heads)


def _scaled_by_head(builder: Builder, query: Value, scale: HeadScale) -> Value:
    """A query ``[B, H, S, D]`` times the number of its head, or divided by that."""
    by_head = standard(builder, scale.value, scale.layout, QUERY, "numbers_of_heads")
    if scale.divides:
        return builder.divide(query, by_head, "query_by_head")
    return builder.multiply(query, by_head, "query_by_head")


def _keys(builder: Builder, found: SummedProducts) -> list[Value]:
    parts = [
        (standard(builder, each.key, each.key_layout, KEYS, "key_part"), each.key_layout)
        for each in found.products
    ]
    return _alike(builder, parts, found.heads)


def _alike(builder: Builder, parts: list[tuple[Value, Layout]], heads: int) -> list[Value]:
    """All parts with heads, if any has them: those that heads share are repeated."""
    if not any(heads_of(layout) for _, layout in parts):
        return [value for value, _ in parts]
    return [
        value
        if heads_of(layout)
        else builder.expand(value, builder.integers(1, heads, 1, 1), "part_of_heads")
        for value, layout in parts
    ]
