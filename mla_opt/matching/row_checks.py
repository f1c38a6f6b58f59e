"""What has to hold of the rows for an attention to be latent; each check refuses by a code."""

from __future__ import annotations

from collections.abc import Iterable

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError
from mla_opt.matching.core_axes import CoreAxes
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.region import new_tokens, walk
from mla_opt.matching.roles import Roles
from mla_opt.matching.shared_rows import (
    SharedRows,
    all_below,
    end_of,
    flat_rows,
    keeps_order,
    makers,
    named,
    projection,
    row_width,
)
from mla_opt.sites import AttentionCore
from mla_opt.sites.layout import head_count

_MOST_GROUPS = 8
"""Groups of heads with a latent each, at most: every head computes with the rows of all groups."""


def check_shared(graph: Graph, core: AttentionCore, rows: SharedRows) -> None:
    """Everything that the values are made of is in the keys."""
    apart = [value for value in rows.of_values if value not in rows.of_keys]
    if not apart and rows.of_values:
        return
    of_keys = [value for value in rows.of_keys if value not in rows.of_values]
    for what, values in (("values", apart or [core.value]), ("keys", of_keys)):
        for value in values:
            _refuse_end(graph, rows, what, value)
    _check_common(graph, core, rows)
    raise NotLatentError(
        "separate_projections",
        f"keys and values are not made of one row: the values of {named(apart)}, the keys of"
        f" {named(rows.of_keys)}",
        makers(graph, [*apart, *rows.of_keys]),
        "nothing, if the model projects keys and values from the hidden state",
    )


def check_apart(graph: Graph, core: AttentionCore, axes: CoreAxes, rows: SharedRows) -> None:
    """The narrowest rows have an axis for sequences, and one for tokens."""
    flat = flat_rows(core, axes, rows)
    if flat:
        raise NotLatentError(
            "rows_flattened",
            f"all tokens of all sequences are one axis of the rows {named(flat)}, whose size does"
            " not tell how many sequences there are",
            makers(graph, list(flat)) or (core.first, core.last),
        )


def _check_common(graph: Graph, core: AttentionCore, rows: SharedRows) -> None:
    """Keys and values that are narrower than the row that they have in common."""
    common = [
        value
        for value in all_below(rows.region, core.key)
        if value in all_below(rows.region, core.value) and value in rows.region.leaves
    ]
    if common and not rows.region.leaves[common[0]].kind == "apart":
        raise NotLatentError(
            "latent_not_narrower",
            f"keys and values meet in {named(common)}, which is not narrower than what is made of"
            " it: nothing would be saved",
            makers(graph, common) or (core.first, core.last),
        )


def _refuse_end(graph: Graph, rows: SharedRows, what: str, value: Value) -> None:
    """Say why keys or values end where they do, where that is as wide as they are themselves."""
    end = end_of(rows.region, value)
    leaf = rows.region.leaves.get(end)
    if leaf is None or not _is_of_heads(rows, end):
        return
    node = graph.producer(end)
    at = () if node is None else (node,)
    if node is None:
        raise NotLatentError(
            "no_shared_projection",
            f"the {what} are made of {end.name}, an input",
            _readers(graph, end),
        )
    if _is_product(graph, node):
        raise NotLatentError(
            "projection_not_constant",
            f"the {what} come from a matrix product with something computed, not stored",
            at,
            "store the projection weight in the model",
        )
    if _rounds(graph, node):
        raise NotLatentError(
            "activations_quantized",
            f"the {what} are made of quantized activations in a way that cannot be read without"
            f" their rounding: {graph.label(node)}",
            at,
            "quantize only the weights, or quantize after optimizing",
        )
    apart = leaf.kind == "apart"
    raise NotLatentError(
        "tokens_apart" if apart else "not_linear",
        f"the {what} are not a linear image of one row for each token: {leaf.why}",
        at,
        "nothing, if the model means it; else export it without this operator",
    )


def _readers(graph: Graph, value: Value) -> tuple[Node, ...]:
    return tuple(graph.consumers(value))


def _rounds(graph: Graph, node: Node) -> bool:
    """Whether a node computes with quantized activations."""
    operation = graph.operation(node)
    return isinstance(operation, op.Opaque) and operation.rounds


def _is_product(graph: Graph, node: Node) -> bool:
    operation = graph.operation(node)
    return isinstance(operation, op.MatMul) or (
        isinstance(operation, op.Opaque) and operation.product
    )


def _is_of_heads(rows: SharedRows, value: Value) -> bool:
    """Whether a leaf is of every head, so that nothing was saved by going back to it."""
    return any(
        atom.name is not None or atom.of
        for axis in rows.region.axes[value]
        for atom in axis
        if isinstance(atom.size, int)
    )


def check_groups(graph: Graph, axes: CoreAxes, rows: SharedRows, roles: Roles) -> None:
    """Groups of heads that have a latent each are few, and of several heads."""
    groups = sum(roles.groups(rows.region.axes[row]) for row in rows.shared)
    heads = head_count(roles.layout(axes.query))
    if groups > 1 and (groups > _MOST_GROUPS or 2 * groups > heads):
        raise NotLatentError(
            "latent_per_head",
            f"its {heads} heads have {groups} latents of their own, {named(rows.shared)}, and would"
            " all compute with all of them",
            makers(graph, list(rows.shared)),
        )


def _has_other_tokens(axes: CoreAxes, roles: Roles) -> bool:
    """Whether the rows that a call makes are of other tokens than its query."""
    known = axes.variables.sizes
    query = [name for name, (role, _) in roles.known.items() if role == "query"]
    of_query = sizes.product(known[name] for name in query)
    made = known.get(new_tokens(axes.keys), known.get(axes.keys, 1))
    return not sizes.same(of_query, made)


def check_narrower(
    graph: Graph, core: AttentionCore, axes: CoreAxes, rows: SharedRows, roles: Roles
) -> None:
    """The rows save something, and are no hidden state, as that of an encoder is."""

    def width(values: tuple[Value, ...]) -> int:
        known = (row_width(axes.variables, axes, rows.region, value) for value in values)
        return sum(size or 0 for size in known)

    each_its_own = not rows.of_keys_only and projection(graph, rows, rows.shared[0]) is None
    if each_its_own and core.value not in rows.of_values and _has_other_tokens(axes, roles):
        raise NotLatentError(
            "latent_not_narrower",
            f"keys and values have a projection each, of {named(rows.shared)}, which has other"
            " tokens than the query and is a hidden state: it is cross-attention",
            makers(graph, list(rows.shared)) or (core.first, core.last),
        )
    row = width((*rows.shared, *rows.of_keys_only))
    made = width((core.key, core.value))
    if row >= made and (core.key not in rows.of_keys or core.value not in rows.of_values):
        raise NotLatentError(
            "latent_not_narrower",
            f"the rows are {row} wide and make {made} numbers: nothing would be saved",
            makers(graph, list(rows.shared)),
        )


def check_query(graph: Graph, core: AttentionCore, axes: CoreAxes, rows: SharedRows) -> None:
    """The query is no linear image of the row: then that row would be the hidden state."""
    try:
        region = walk(graph, axes.variables, {core.query: axes.query}, tokens="none")
    except ApartError:
        return
    between = {*rows.region.axes} - _under(graph, rows)
    same = [value for value in region.axes if value in between]
    if same:
        raise NotLatentError(
            "query_from_latent",
            f"the query is a linear image of {same[0].name}, as keys and values are: those rows are"
            " the hidden state, not a latent",
            makers(graph, same[:2]),
        )


def _under(graph: Graph, rows: SharedRows) -> set[Value]:
    """What the rows themselves are computed from, beyond where they were only moved and cast."""
    under: set[Value] = set()
    for row in rows.of_keys:
        value, parts = row, rows.region.made_of.get(row, ())
        while len(parts) == 1 and _is_moved(graph, value):
            (value,) = parts
            parts = rows.region.made_of.get(value, ())
        under.update(below for part in parts for below in all_below(rows.region, part))
    return under


def _is_moved(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    return isinstance(operation, op.Cast) or (
        isinstance(operation, op.Layout) and keeps_order(graph, operation, value)
    )


def check_order(graph: Graph, core: AttentionCore, rows: Iterable[Value]) -> None:
    """Neither query nor masks are computed from the rows, which the operator returns.

    ``rows`` are those that keys and values are made of, and the caches that hold them.
    """
    given = (core.query, *(term.value for term in core.bias))
    reached = _computed_from(graph, given, set(rows))
    if reached is not None:
        raise NotLatentError(
            "query_from_latent",
            f"the query, or a mask, is computed from {reached.name}, as keys and values are",
            makers(graph, [reached]),
        )


def _computed_from(graph: Graph, given: tuple[Value, ...], rows: set[Value]) -> Value | None:
    """The row that the data of a value depends on; what only reads its shape does not.

    Latent attentions before this one need their rows no longer: the operator stands for them.
    """
    absorbed = {site.core.output: site.core.query for site in graph.sites}
    nodes = [node for node in map(graph.producer, rows) if node is not None]
    limit = min(map(graph.position, nodes), default=0)
    pending, seen = list(given), set()
    while pending:
        value = absorbed.get(pending[-1], pending[-1])
        pending.pop()
        if value in rows:
            return value
        node = graph.producer(value)
        if node is None or node in seen or graph.position(node) < limit:
            continue
        seen.add(node)
        if not graph.is_shape_reader(node):
            pending.extend(graph.reads(node))
    return None
