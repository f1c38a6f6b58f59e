"""Telling a latent attention from any other, by where its keys and values come from.

    c_kv --- one linear layer --+--> values of every head
                                +--> keys of every head, but for ...
    k_pe --- repeated ----------+    ... the part that all heads share

An attention is latent when keys and values meet in one linear layer of one row ``c_kv`` that is
narrower than what the layer makes, the keys have besides it at most one row ``k_pe`` that is
repeated for the heads, and the query does not come from that layer or that row.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.errors import Refusal
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import FAR, Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.projection_walk import Leaves, leaves
from mla_opt.matching.token_counts import uneven
from mla_opt.sites import AttentionCore, LatentAttentionSite, PastConcat

TOKEN_AXIS = -2


class NotLatentError(Exception):
    """Carries why an attention is not latent, or not provably so."""

    def __init__(
        self, code: str, reason: str, nodes: tuple[Node, ...] = (), remedy: str = ""
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.nodes, self.remedy = code, reason, nodes, remedy

    def refusal(self, graph: Graph, site: str) -> Refusal:
        """The refusal to report, with the nodes named."""
        labels = tuple(graph.label(node) for node in self.nodes)
        return Refusal(site, self.code, self.reason, labels, self.remedy)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where keys and values come from."""

    projection: Node
    latent: Value
    rope: Value | None
    expanded: tuple[PastConcat, PastConcat] | None
    between: tuple[Value, ...]


def latent_site(graph: Graph, core: AttentionCore) -> LatentAttentionSite:
    """Read one attention as latent; whoever calls gives it a name.

    Raises:
        NotLatentError: it is not, or not in a form that can be proved.
    """
    if core.unsupported:
        raise NotLatentError(
            "unsupported_attention", f"the attention node: {core.unsupported}", core.nodes
        )
    sources = _sources(graph, core)
    _check_query(graph, core, sources)
    _check_shapes(graph, core, sources)
    _check_every_token(graph, core, sources)
    return LatentAttentionSite(
        name="",
        core=core,
        projection=sources.projection,
        latent=sources.latent,
        rope=sources.rope,
        expanded=sources.expanded,
        only_new_rows=_only_new_rows(graph, core, sources),
        family="expanded" if sources.expanded else "none",
        layout_before="expanded" if sources.expanded else "rows",
    )


def _sources(graph: Graph, core: AttentionCore) -> _Sources:
    values = leaves(graph, core.value)
    projection = _value_projection(graph, core, values)
    keys = leaves(graph, core.key, stop_at=frozenset({projection}))
    _check_keys(graph, projection, keys)
    operation = graph.operation(projection)
    assert isinstance(operation, op.Linear)
    rope = keys.shared_rows[0] if keys.shared_rows else None
    latent = _unflattened(graph, operation.data)
    expanded = _expanded_cache(graph, core, keys, values)
    return _Sources(projection, latent, rope, expanded, (*values.through, *keys.through))


def _unflattened(graph: Graph, rows: Value) -> Value:
    """The rows before batch and tokens were made one axis, as a Gemm needs them."""
    shape, node = graph.example_shape(rows), graph.producer(rows)
    operation = None if node is None else graph.operation(node)
    if shape is None or len(shape) != 2 or not isinstance(operation, op.Layout):
        return rows
    before = graph.example_shape(operation.data[0])
    same = before is not None and len(before) > 2 and before[-1] == shape[-1]
    return operation.data[0] if same and len(operation.data) == 1 else rows


def _value_projection(graph: Graph, core: AttentionCore, values: Leaves) -> Node:
    if values.opaque:
        raise _not_linear(graph, "values", values.opaque)
    if len(values.linears) != 1 or values.inputs:
        raise NotLatentError(
            "no_shared_projection",
            "the values do not come from one linear layer",
            (core.last, *values.linears),
        )
    _check_matrix(graph, values.linears[0])
    return values.linears[0]


def _check_matrix(graph: Graph, linear: Node) -> None:
    operation = graph.operation(linear)
    assert isinstance(operation, op.Linear)
    shape = graph.example_shape(operation.weight)
    if operation.plain and (shape is None or len(shape) != 2):
        raise NotLatentError(
            "projection_not_a_matrix",
            f"the weight of the linear layer has shape {shape}, not two dims",
            (linear,),
        )


def _not_linear(graph: Graph, what: str, nodes: list[Node]) -> NotLatentError:
    if any(_is_product(graph.operation(node)) for node in nodes):
        return NotLatentError(
            "projection_not_constant",
            f"the {what} come from a matrix product with something computed, not stored",
            tuple(nodes),
            "store the projection weight in the model",
        )
    return NotLatentError(
        "not_linear",
        f"the {what} are not a linear image of one row: something else lies between",
        tuple(nodes),
    )


def _is_product(operation: op.Operation) -> bool:
    return isinstance(operation, op.MatMul) or (
        isinstance(operation, op.Opaque) and operation.product
    )


def _check_keys(graph: Graph, projection: Node, keys: Leaves) -> None:
    if projection not in keys.linears:
        code = "separate_projections" if keys.linears else "keys_not_from_latent"
        raise NotLatentError(
            code,
            "keys and values do not meet in one linear layer",
            (projection, *keys.linears, *keys.opaque),
        )
    others = [node for node in keys.linears if node is not projection]
    if others or keys.opaque or keys.inputs:
        raise NotLatentError(
            "rope_per_head",
            "part of the keys comes from elsewhere and is not one row shared by all heads",
            (*others, *keys.opaque),
        )
    if len(keys.shared_rows) > 1:
        raise NotLatentError(
            "several_shared_rows",
            "the keys have more than one row that is repeated for the heads",
            (projection,),
        )


def _expanded_cache(
    graph: Graph, core: AttentionCore, keys: Leaves, values: Leaves
) -> tuple[PastConcat, PastConcat] | None:
    if not keys.pasts and not values.pasts:
        return None
    if len(keys.pasts) != 1 or len(values.pasts) != 1:
        raise NotLatentError(
            "cache_of_one_half",
            "only one of keys and values is cached, or one of them twice",
            (core.first, core.last),
        )
    pair = (keys.pasts[0], values.pasts[0])
    if any(part.axis != TOKEN_AXIS for part in pair):
        raise NotLatentError(
            "cache_axis",
            "the cache does not grow along the token axis of [B, H, T, D]",
            (core.first, core.last),
        )
    if not all(graph.is_output(part.joined) for part in pair):
        raise NotLatentError(
            "cache_not_returned",
            "the joined cache is not an output of the graph",
            (core.first, core.last),
        )
    for part in pair:
        readers = [n for n in graph.consumers(part.past) if not graph.is_shape_reader(n)]
        if len(readers) != 1:
            raise NotLatentError(
                "cache_read_twice",
                f"more than the attention reads the cache {part.past.name!r}, whose rows will be"
                " others",
                tuple(readers),
            )
    return pair


def _check_query(graph: Graph, core: AttentionCore, sources: _Sources) -> None:
    linears = leaves(graph, core.query).linears
    same = [linear for linear in linears if _same_weight(graph, linear, sources.projection)]
    if same or _depends_on(graph, core.query, sources.projection):
        raise NotLatentError(
            "query_from_projection",
            "the query comes from the layer that makes keys and values",
            (sources.projection, *same),
        )
    origin = _origin(graph, sources.latent)
    for linear in linears:
        operation = graph.operation(linear)
        if isinstance(operation, op.Linear) and origin is _origin(graph, operation.data):
            raise NotLatentError(
                "query_from_latent",
                "the query is a linear image of the same row as keys and values: that row is the"
                " hidden state, not a latent",
                (linear, sources.projection),
            )


def _same_weight(graph: Graph, linear: Node, other: Node) -> bool:
    """Whether two linear layers are one that is called twice: they have one stored matrix."""
    first, second = (_stored_matrix(graph, node) for node in (linear, other))
    return first is not None and first is second


def _stored_matrix(graph: Graph, linear: Node) -> Value | None:
    """The stored tensor behind the weight of a layer, through what moves or rounds its elements."""
    operation = graph.operation(linear)
    value = operation.weight if isinstance(operation, op.Linear) else None
    while value is not None and graph.stored_name(value) is None:
        node = graph.producer(value)
        match None if node is None else graph.operation(node):
            case op.Layout((data,)) | op.Cast(data):
                value = data
            case _:
                return None
    return value


def _origin(graph: Graph, value: Value) -> Value:
    """Where the elements of a value come from, before they were moved."""
    while (node := graph.producer(value)) is not None:
        match graph.operation(node):
            case op.Layout((data,)) | op.Cast(data) if _is_whole(graph, data, value):
                value = data
            case _:
                break
    return value


def _is_whole(graph: Graph, data: Value, value: Value) -> bool:
    """Whether a value still has all elements of a row: its last axis is as wide."""
    before, after = graph.example_shape(data), graph.example_shape(value)
    return bool(before and after and before[-1] == after[-1])


def _depends_on(graph: Graph, value: Value, node: Node) -> bool:
    """Whether ``value`` needs ``node``; only what comes after it in the graph is searched.

    Latent attentions before this one need it no longer: layers that share their rows may have their
    projections in one layer, whose output the earlier one then does not read.
    """
    absorbed = {site.core.output: site.core.query for site in graph.sites}
    limit = graph.position(node)
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current in absorbed:
            pending.append(absorbed[current])
            continue
        producer = graph.producer(current)
        if producer is node:
            return True
        if producer is None or producer in seen or graph.position(producer) < limit:
            continue
        seen.add(producer)
        pending.extend(graph.operands(producer))
    return False


def _check_shapes(graph: Graph, core: AttentionCore, sources: _Sources) -> None:
    key, value = graph.example_shape(core.key), graph.example_shape(core.value)
    query, latent = graph.example_shape(core.query), graph.example_shape(sources.latent)
    if key is None or value is None or query is None or latent is None:
        raise NotLatentError(
            "unknown_shape",
            "the shapes of query, keys, values or latent cannot be inferred",
            (core.first, core.last),
            "run shape inference on the model, or export it with shapes",
        )
    if not len(query) == len(key) == len(value) == 4:
        raise NotLatentError(
            "rank", "query, keys and values are not all of rank 4", (core.first, core.last)
        )
    if not query[1] == key[1] == value[1]:
        raise NotLatentError(
            "head_count",
            f"query, keys and values have {query[1]}, {key[1]} and {value[1]} heads",
            (core.first, core.last),
        )
    _check_rows(graph, sources, latent)
    _check_width(graph, core, sources, (key, value, latent))


def _only_new_rows(graph: Graph, core: AttentionCore, sources: _Sources) -> bool:
    """Whether there are as many keys as queries, in a call long enough to tell."""
    binding = graph.nearest_binding(*FAR)
    query, rows = binding.shape(core.query), binding.shape(sources.latent)
    same = query is not None and rows is not None and query[2] == rows[-2]
    return same and sources.expanded is None


def _check_every_token(graph: Graph, core: AttentionCore, sources: _Sources) -> None:
    """Refuse crops to a window, and what sets some rows apart: no small example shows either."""
    binding = graph.nearest_binding(*FAR)
    key, value = binding.shape(core.key), binding.shape(core.value)
    rows = sources.latent if sources.expanded is None else sources.expanded[0].joined
    whole = binding.shape(rows)
    seen = None if key is None else key[-1 if core.key_is_transposed else -2]
    if whole is None or value is None or not whole[-2] == seen == value[-2]:
        raise NotLatentError(
            "not_every_row",
            f"of {whole and whole[-2]} rows, keys are made of {seen} and values of"
            f" {value and value[-2]}",
            (core.first, core.last),
        )
    apart = uneven(graph, sources.between)
    if apart is not None:
        node = graph.producer(apart)
        raise NotLatentError(
            "tokens_apart",
            f"{apart.name} is of some tokens only, or of how many cannot be told",
            (core.first, core.last) if node is None else (node,),
        )


def _check_rows(graph: Graph, sources: _Sources, latent: tuple[int, ...]) -> None:
    rope = None if sources.rope is None else graph.example_shape(sources.rope)
    for what, shape in (("latent", latent), ("k_pe", rope)):
        if shape is None and what == "k_pe" and sources.rope is None:
            continue
        if shape is None or not (len(shape) == 3 or (len(shape) == 4 and shape[1] == 1)):
            raise NotLatentError(
                "rope_per_head" if what == "k_pe" else "latent_rank",
                f"the {what} rows have shape {shape}, not [batch, 1, tokens, width]",
                (sources.projection,),
            )


def _check_width(
    graph: Graph,
    core: AttentionCore,
    sources: _Sources,
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> None:
    key, value, latent = shapes
    rope = None if sources.rope is None else graph.example_shape(sources.rope)
    key_width = key[-2] if core.key_is_transposed else key[-1]
    made = key[1] * (key_width - (0 if rope is None else rope[-1]) + value[-1])
    if latent[-1] >= made:
        raise NotLatentError(
            "latent_not_narrower",
            f"the row is {latent[-1]} wide and makes {made} numbers: nothing would be saved",
            (sources.projection,),
        )
