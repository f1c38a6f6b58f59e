"""The projections beside a latent attention that its matrices can be multiplied into.

    x --> W_UQ --> reshape, split --> query_nope       fold-q: W_UQ W_UK
    output --> transpose, reshape --> W_O              fold-o: W_UV W_O

Which column or row of the projection belongs to which head and dim is found by sending labels
through the layout in between, so that its order is no special case. What is found is proved by
running it (:mod:`mla_opt.matching.fold_certificate`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mla_opt.errors import MlaOptError
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array, Float64, Node, Value
from mla_opt.matching.axes import ApartError, Atom, Axis, Placement, Variables
from mla_opt.matching.fold_certificate import output_holds, query_holds
from mla_opt.matching.labels import trace
from mla_opt.matching.linear_matrix import linear_matrix, multiplies_rows
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.region import Region, walk
from mla_opt.sites import LatentAttentionSite, LatentWeights, OutputProjection, QueryProjection
from mla_opt.sites.layout import QUERY, Layout, Part, Role, is_standard

_FAILED = "running the projection showed another result than the matrix that it was folded into"


class FoldBlockedError(MlaOptError):
    """A projection cannot be folded into; carries the nodes that are in the way."""

    def __init__(self, reason: str, nodes: tuple[Node, ...] = ()) -> None:
        super().__init__(reason)
        self.nodes = nodes

    def labels(self, graph: Graph) -> tuple[str, ...]:
        """Names of the nodes."""
        return tuple(graph.label(node) for node in self.nodes)


def query_projection(graph: Graph, site: LatentAttentionSite) -> QueryProjection:
    """Find W_UQ. Raises `FoldBlockedError`."""
    weights = _weights(site)
    split, nope, rope = _query_split(graph, site, weights)
    projected, variables, rows = _projected(graph, nope, split)
    linear = graph.producer(projected)
    assert linear is not None
    operation = graph.operation(linear)
    assert isinstance(operation, op.Linear)
    _check_rows(graph, operation, linear)
    layout = _source_layout(variables, rows[: _rank_of_rows(graph, operation) - 1], linear)
    if rope is not None:
        _check_walk(graph, *_query_axes(graph, rope), projected)
    matrix = _matrix(graph, linear)
    columns = _columns(graph, projected, len(layout), nope)
    folded = np.einsum("xhn,hnc->xhc", matrix[:, columns.index] * columns.factor, weights.w_uk)
    rope_weight = None
    if rope is not None:
        parts = _columns(graph, projected, len(layout), rope)
        picked = matrix[:, parts.index] * parts.factor
        rope_weight = picked.reshape(len(matrix), -1)
    weight = folded.reshape(len(matrix), -1)
    fold = QueryProjection(operation.data, layout, weight, rope, rope_weight)
    if graph.has_content() and not query_holds(graph, site, fold, _parts(graph, site, nope)):
        raise FoldBlockedError(_FAILED, (linear,))
    return fold


def output_projection(graph: Graph, site: LatentAttentionSite) -> OutputProjection:
    """Find W_O. Raises `FoldBlockedError`."""
    weights = _weights(site)
    if weights.value_bias is not None:
        raise FoldBlockedError("the values have a bias", (site.core.last,))
    linear, data = _following_linear(graph, site.core.output)
    layout = _result_layout(graph, site, data)
    matrix = _matrix(graph, linear)
    rows = _rows(graph, site.core.output, data)
    folded = np.einsum("hcv,hve->hce", weights.w_uv, matrix[rows])
    weight = folded.reshape(-1, matrix.shape[1])
    fold = OutputProjection(weight, graph.results(linear)[0], layout)
    if graph.has_content() and not output_holds(graph, site, fold):
        raise FoldBlockedError(_FAILED, (linear,))
    return fold


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column of a projection each head and dim is, and what it is multiplied by."""

    index: Array
    factor: Array


def _weights(site: LatentAttentionSite) -> LatentWeights:
    assert site.weights is not None
    return site.weights


def _query_split(
    graph: Graph, site: LatentAttentionSite, weights: LatentWeights
) -> tuple[Node, Value, Value | None]:
    """The split of the projected query into its two parts, where nothing else reads the whole."""
    n, r = len(weights.nope_dims), len(weights.rope_dims)
    layouts = site.core.layouts
    if layouts is None or not is_standard(layouts.query, QUERY):
        raise FoldBlockedError("the axes of the query are not [B, H, S, D]", (site.core.first,))
    node = graph.producer(site.core.query)
    operation = None if node is None else graph.operation(node)
    if node is None or not isinstance(operation, op.Layout):
        raise FoldBlockedError("the query is changed after its projection", (node,) if node else ())
    if not r:
        return node, site.core.query, None
    if operation.concat_axis != -1:
        raise FoldBlockedError("the query is not two parts put together", (node,))
    if weights.rope_dims != tuple(range(n, n + r)):
        raise FoldBlockedError("the keys have k_pe in other dims than behind all others", (node,))
    nope = operation.data[0]
    split = graph.producer(nope)
    parts = () if split is None else graph.results(split)
    widths = [(graph.example_shape(part) or (0,))[-1] for part in parts]
    if split is None or widths != [n, r] or parts[0] is not nope:
        raise FoldBlockedError("the parts of the query are not split off one projection", (node,))
    return split, nope, parts[1]


def _parts(graph: Graph, site: LatentAttentionSite, nope: Value) -> tuple[Value, ...]:
    """What the query is put together of."""
    node = graph.producer(site.core.query)
    operation = None if node is None or nope is site.core.query else graph.operation(node)
    return operation.data if isinstance(operation, op.Layout) else (nope,)


def _projected(graph: Graph, part: Value, split: Node) -> tuple[Value, Variables, Placement]:
    """What the one projection makes that a part of the query is moved from, and its axes.

    Every token of the part is made of the same token of that, at every size.
    """
    made = [
        graph.results(node)[0]
        for node in graph.nodes()
        if isinstance(graph.operation(node), op.Linear)
    ]
    variables, roots = _query_axes(graph, part)
    region = _walked(graph, variables, roots, made)
    if len(region.leaves) == 1:
        (projected,) = region.leaves
        if region.leaves[projected].kind == "asked":
            return projected, variables, region.axes[projected]
    nodes = tuple(node for value in region.leaves for node in _maker(graph, value))
    raise FoldBlockedError("the query is not one projection and layout", nodes or (split,))


def _query_axes(graph: Graph, part: Value) -> tuple[Variables, dict[Value, Placement]]:
    """The axes of a part of the query, ``[B, H, S, D]``; sequences and tokens stay apart."""
    variables = Variables()
    shape = graph.sizes(part)
    if shape is None or len(shape) != 4:
        raise FoldBlockedError("the query has an unknown shape", _maker(graph, part))
    names = ("b", None, "s", None)
    axes = tuple(
        variables.new(name, size) if name else _fixed(size) for name, size in zip(names, shape)
    )
    variables.whole.update(("b", "s"))
    return variables, {part: axes}


def _check_rows(graph: Graph, linear: op.Linear, node: Node) -> None:
    if not multiplies_rows(graph, linear):
        raise FoldBlockedError("the projection is no matrix that multiplies each row", (node,))


def _rank_of_rows(graph: Graph, linear: op.Linear) -> int:
    """How many axes a projection reads."""
    if linear.axes is not None:
        return len(linear.axes.first)
    return len(graph.sizes(linear.data) or ())


def _source_layout(variables: Variables, rows: Placement, node: Node) -> Layout:
    """Which axes of what the query is projected from are sequences and tokens, its width behind."""
    known: dict[str, tuple[Role, int]] = {"b": ("batch", 0), "s": ("query", 0)}
    roles = {name: role for name, role in known.items() if name in variables.sizes}
    layout = _layout_of(variables, rows, roles)
    if layout is None or any(sum(part.size is None for part in axis) > 1 for axis in layout):
        raise FoldBlockedError("the query is projected from rows that are not [B, S, X]", (node,))
    return layout


def _layout_of(
    variables: Variables, rows: Placement, roles: Mapping[str, tuple[Role, int]]
) -> Layout | None:
    """The layout of rows, by what each variable is, with an axis of their width behind it.

    ``None`` where they have something else, or not everything, or that twice.
    """
    axes = [variables.current(axis) for axis in rows]
    if sorted(atom.name or "" for axis in axes for atom in axis) != sorted(roles):
        return None
    outer = (tuple(_part(roles[atom.name or ""], atom) for atom in axis) for axis in axes)
    return (*outer, (Part("width", None),))


def _part(role: tuple[Role, int], atom: Atom) -> Part:
    return Part(role[0], atom.size if isinstance(atom.size, int) else None, role[1])


def _result_layout(graph: Graph, site: LatentAttentionSite, data: Value) -> Layout:
    """Which axes of W_O's operand are sequences and tokens, and the last one heads and dims.

    Every row of it is made of one token of one sequence, at every size.
    """
    variables, layouts = Variables(), site.core.layouts
    shape = graph.sizes(data)
    if shape is None or layouts is None or not is_standard(layouts.output, QUERY):
        raise FoldBlockedError("the output has an unknown shape", _maker(graph, data))
    axes = tuple(variables.new(f"r{place}", size) for place, size in enumerate(shape[:-1]))
    variables.whole.update(variables.sizes)
    region = _check_walk(graph, variables, {data: (*axes, _fixed(shape[-1]))}, site.core.output)
    of_output = region.axes[site.core.output]
    named: tuple[tuple[Role, Axis], ...] = (("batch", of_output[0]), ("query", of_output[2]))
    roles: dict[str, tuple[Role, int]] = {
        atom.name or "": (role, place)
        for role, axis in named
        for place, atom in enumerate(variables.current(axis))
    }
    layout = _layout_of(variables, axes, roles)
    if layout is None:
        raise FoldBlockedError("tokens are mixed on their way to W_O", _maker(graph, data))
    return layout


def _fixed(size: Expression) -> Axis:
    return () if size == 1 else (Atom(size),)


def _check_walk(
    graph: Graph, variables: Variables, roots: dict[Value, Placement], end: Value
) -> Region:
    region = _walked(graph, variables, roots, (end,))
    for value, leaf in region.leaves.items():
        if value is not end:
            raise FoldBlockedError(leaf.why, _maker(graph, value))
    return region


def _walked(
    graph: Graph, variables: Variables, roots: dict[Value, Placement], stop_at: Collection[Value]
) -> Region:
    try:
        return walk(graph, variables, roots, tokens="none", stop_at=stop_at)
    except ApartError as error:
        raise FoldBlockedError(str(error)) from error


def _matrix(graph: Graph, linear: Node) -> Float64:
    """The matrix of a linear layer ``[in, out]``."""
    try:
        matrix = linear_matrix(graph, graph.nearest_binding(*EXAMPLE), linear)
    except NotLatentError as error:
        raise FoldBlockedError(str(error), (linear,)) from error
    if matrix.bias is not None:
        raise FoldBlockedError("the projection has a bias", (linear,))
    return matrix.weight.astype(np.float64)


def _columns(graph: Graph, projected: Value, rank: int, part: Value) -> _Columns:
    """Which column each head and dim ``[H, X]`` of a part of the projected query is.

    Columns are the axes of ``projected`` from the last of ``rank`` on.
    """
    binding = graph.nearest_binding(*EXAMPLE)
    shape = binding.shape(projected)
    if shape is None:
        raise FoldBlockedError("the projected query has an unknown shape", _maker(graph, part))
    kind, behind = graph.dtype(projected), shape[rank - 1 :]

    def run(labels: Array) -> tuple[Array, ...]:
        fed = np.broadcast_to(labels.reshape(behind), shape).astype(kind)
        return (binding.run([part], {projected: fed})[0][0, :, 0, :],)

    (traced,) = trace(math.prod(behind), run)
    if not traced.alone:
        raise FoldBlockedError("the query is a sum of what is projected", _maker(graph, part))
    if not traced.moved.all() or np.any(traced.offset):
        raise FoldBlockedError("the query is shifted after its projection", _maker(graph, part))
    return _Columns(traced.source, traced.factor)


def _maker(graph: Graph, value: Value) -> tuple[Node, ...]:
    """The node to name for a value."""
    node = graph.producer(value)
    return () if node is None else (node,)


def _following_linear(graph: Graph, value: Value) -> tuple[Node, Value]:
    """The linear layer that alone reads a value, through layout."""
    while True:
        readers = graph.consumers(value)
        if len(readers) != 1 or graph.is_output(value):
            raise FoldBlockedError("more than the projection reads the output", tuple(readers))
        operation = graph.operation(readers[0])
        if isinstance(operation, op.Linear):
            _check_rows(graph, operation, readers[0])
            _check_one_axis(operation, readers[0])
            return readers[0], value
        if not isinstance(operation, op.Layout) or len(operation.data) != 1:
            raise FoldBlockedError("something lies between the output and W_O", (readers[0],))
        value = graph.results(readers[0])[0]


def _check_one_axis(linear: op.Linear, node: Node) -> None:
    if linear.axes is not None and len(linear.axes.result) != len(linear.axes.first):
        raise FoldBlockedError("W_O makes more than one axis", (node,))


def _rows(graph: Graph, output: Value, data: Value) -> Array:
    """Which row of W_O each head and dim is: ``[H, V]``."""
    binding = graph.nearest_binding(*EXAMPLE)
    shape = binding.shape(output)
    if shape is None:
        raise FoldBlockedError("the output has an unknown shape", _maker(graph, output))
    _, heads, _, width = shape
    kind = graph.dtype(output)

    def run(labels: Array) -> tuple[Array, ...]:
        fed = np.broadcast_to(labels.reshape(1, heads, 1, width), shape).astype(kind)
        made = binding.run([data], {output: fed})[0]
        return (made.reshape(-1, made.shape[-1])[0],)

    (traced,) = trace(heads * width, run)
    if not traced.alone or not traced.moved.all() or np.any(traced.factor != 1.0):
        raise FoldBlockedError("the output is scaled on its way to W_O", _maker(graph, data))
    order = np.arange(heads * width)
    if not np.array_equal(np.sort(traced.source), order):
        raise FoldBlockedError(
            "dims of the output are lost or doubled on its way to W_O", _maker(graph, data)
        )
    rows = np.empty_like(order)
    rows[traced.source] = order
    return rows.reshape(heads, width)
