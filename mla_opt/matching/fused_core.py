"""An attention that is one node of the graph."""

from __future__ import annotations

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Node
from mla_opt.matching.axes import Atom, Axis, Placement, UnknownShapeError, Variables
from mla_opt.matching.core_axes import KEYS, CoreAxes, ReadCore
from mla_opt.sites import AttentionCore, BiasTerm

Shape = tuple[Expression, ...]

_OWN_CACHE = "it keeps its own cache"
_LENGTHS = "how many keys there are depends on data (nonpad_kv_seqlen)"
_CAUSAL_PAST = "its causal mask is over past keys, and calls may bring more keys than queries"


def fused_core(graph: Graph, node: Node, fused: op.FusedAttention) -> ReadCore:
    """The attention that a fused node is."""
    bias = () if fused.bias is None else (BiasTerm("either", fused.bias),)
    core = AttentionCore(
        query=fused.query,
        key=fused.key,
        value=fused.value,
        output=fused.output,
        scale=fused.scale,
        first=node,
        last=node,
        bias=bias,
        causal=fused.causal,
        unsupported=fused.unsupported or _unread_past(graph, fused),
        nodes=(node,),
    )
    return ReadCore(core, _fused_axes(graph, node, fused))


def adds_own_rows(graph: Graph, fused: op.FusedAttention) -> bool:
    """Whether a call brings a key for each of its queries: causal masks over past keys rely on it.

    Where it brings more, or fewer, versions of ONNX Runtime differ in what the first query sees.
    """
    query, key = graph.sizes(fused.query), graph.sizes(fused.key)
    tokens = 1 if fused.flat else 2
    rank = 3 if fused.flat else 4
    if query is None or key is None or not len(query) == len(key) == rank:
        return False
    return sizes.same(query[tokens], key[tokens])


def can_be_written_out(graph: Graph, fused: op.FusedAttention) -> bool:
    """Whether it has a cache of its own, or lengths, and does nothing that operators cannot say."""
    if fused.unsupported or fused.key_heads is None:
        return False
    if fused.past is None:
        return fused.lengths is not None
    return not fused.causal or adds_own_rows(graph, fused)


def _unread_past(graph: Graph, fused: op.FusedAttention) -> str:
    if fused.lengths is not None:
        return _LENGTHS
    if fused.past is None:
        return ""
    return _OWN_CACHE if adds_own_rows(graph, fused) or not fused.causal else _CAUSAL_PAST


def _fused_axes(graph: Graph, node: Node, fused: op.FusedAttention) -> CoreAxes:
    """Axes of ``[B, H, S, D]`` or ``[B, S, H D]``; the slow part of H are the heads of the keys."""
    variables = Variables()
    shapes = [graph.sizes(value) for value in (fused.query, fused.key, fused.value)]
    query, key, value = shapes
    rank = 3 if fused.flat else 4
    if query is None or key is None or value is None:
        why = "the shapes of its operands are not known"
        return CoreAxes(variables, apart=why, at=node, code=UnknownShapeError.code)
    if not fused.flat and len(query) != rank:
        return _axes_of_any_rank(graph, node, fused, variables, (query, key, value))
    if not len(query) == len(key) == len(value) == rank:
        return CoreAxes(variables, apart="its operands are of other ranks", at=node)
    heads = fused.heads if fused.flat else query[1]
    key_heads = fused.key_heads if fused.flat else key[1]
    repeats = None if heads is None or key_heads is None else sizes.quotient(heads, key_heads)
    widths = [
        _width_of_head(shape, count, fused.flat)
        for shape, count in ((query, heads), (key, key_heads), (value, key_heads))
    ]
    if repeats is None or None in widths or (not fused.flat and value[1] != key[1]):
        why = "its heads are not as many as those of the keys, or some times as many"
        return CoreAxes(variables, apart=why, at=node)
    tokens = -2 if not fused.flat else 1
    batch, new = variables.new("b", query[0]), variables.new("s", query[tokens])
    seen = variables.new(KEYS, key[tokens])
    shared, own = variables.new("h", key_heads), variables.new("r", repeats)
    variables.whole.update(("s", KEYS))
    wide: list[Axis] = [() if width == 1 else (Atom(width),) for width in widths]

    def placed(head: Axis, token: Axis, width: Axis) -> Placement:
        return (batch, token, (*head, *width)) if fused.flat else (batch, head, token, width)

    return CoreAxes(
        variables,
        query=placed((*shared, *own), new, wide[0]),
        key=placed(shared, seen, wide[1]),
        value=placed(shared, seen, wide[2]),
        output=placed((*shared, *own), new, wide[2]),
        bias=_bias_of_fused(graph, fused, (batch, (*shared, *own), new, seen)),
    )


def _axes_of_any_rank(
    graph: Graph,
    node: Node,
    fused: op.FusedAttention,
    variables: Variables,
    shapes: tuple[Shape, Shape, Shape],
) -> CoreAxes:
    """Axes of ``[..., S, D]``: those in front are sequences, heads, or both in one."""
    query, key, value = shapes
    ahead = query[:-2]
    same = len(query) == len(key) == len(value) and all(
        sizes.same(size, other) for each in (key, value) for size, other in zip(ahead, each[:-2])
    )
    if not same or not ahead:
        why = "its operands do not have the same axes in front of tokens and width"
        return CoreAxes(variables, apart=why, at=node)
    outer = tuple(variables.new(f"z{place}", size) for place, size in enumerate(ahead))
    new, seen = variables.new("s", query[-2]), variables.new(KEYS, key[-2])
    variables.whole.update(variables.sizes)
    wide: list[Axis] = [() if each[-1] == 1 else (Atom(each[-1]),) for each in shapes]
    return CoreAxes(
        variables,
        query=(*outer, new, wide[0]),
        key=(*outer, seen, wide[1]),
        value=(*outer, seen, wide[2]),
        output=(*outer, new, wide[2]),
        bias=_bias_of_fused(graph, fused, (*outer, new, seen)),
    )


def _width_of_head(
    shape: tuple[Expression, ...], heads: Expression | None, flat: bool
) -> Expression | None:
    if not flat:
        return shape[-1]
    return None if heads is None else sizes.quotient(shape[-1], heads)


def _bias_of_fused(
    graph: Graph, fused: op.FusedAttention, scores: Placement
) -> tuple[Placement, ...]:
    """Axes of a mask that is broadcast to the scores."""
    if fused.bias is None:
        return ()
    shape = graph.sizes(fused.bias)
    if shape is None or len(shape) > len(scores):
        return (scores,)
    own = scores[len(scores) - len(shape) :]
    return (tuple(() if size == 1 else axis for size, axis in zip(shape, own)),)
