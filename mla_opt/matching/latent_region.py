"""Telling a latent attention from any other, by where its keys and values come from.

    c_kv --- linear, head by head --+--> values of every head
                                    +--> keys of every head, but for ...
    k_pe --- as it is --------------+    ... the part that all heads share

Keys and values are walked back (:mod:`mla_opt.matching.region`) and cut where their rows are
narrowest (:mod:`mla_opt.matching.cut`). The attention is latent when everything that the values are
made of is in the keys, too, when those rows are narrower than what is made of them, and when the
query is not made of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import Placement
from mla_opt.matching.core_axes import CoreAxes, ReadCore
from mla_opt.matching.held_rows import held_rows
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.roles import Roles
from mla_opt.matching.row_caches import expanded_cache, only_new_rows, rewound
from mla_opt.matching.row_checks import (
    check_apart,
    check_groups,
    check_narrower,
    check_order,
    check_query,
    check_shared,
)
from mla_opt.matching.scaled_caches import before_factors
from mla_opt.matching.shared_rows import SharedRows, above, projection, shared_rows
from mla_opt.sites import (
    AttentionCore,
    CachedTensor,
    CacheLayout,
    LatentAttentionSite,
    LatentRows,
)
from mla_opt.sites.core import CoreLayouts
from mla_opt.sites.layout import QUERY, Layout, is_standard, parts_of


def _checked(graph: Graph, core: AttentionCore, axes: CoreAxes, rows: SharedRows) -> Roles:
    """The roles of the axes, where the rows are such as heads share, and save something."""
    try:
        check_shared(graph, core, rows)
        roles = Roles.of(graph, core, axes, rows)
        check_groups(graph, axes, rows, roles)
        check_narrower(graph, core, axes, rows, roles)
    except NotLatentError:
        check_apart(graph, core, axes, rows)  # then that is what would have to change
        raise
    return roles


def latent_site(graph: Graph, read: ReadCore) -> LatentAttentionSite:
    """Read one attention as latent; whoever calls gives it a name.

    Raises:
        NotLatentError: it is not, or not in a form that can be proved.
    """
    core, axes = read.core, read.axes
    _check_core(core, axes)
    rows = shared_rows(graph, core, axes)
    roles = _checked(graph, core, axes, rows)
    check_query(graph, core, axes, rows)
    expanded = expanded_cache(graph, core, roles, rows)
    layouts = CoreLayouts(*(roles.layout(each) for each in _placements(axes)))
    if expanded is None:
        rows = before_factors(graph, rows)
    rows = rewound(graph, rows, roles)
    bias = tuple(
        replace(term, layout=roles.layout(of_term)) for term, of_term in zip(core.bias, axes.bias)
    )
    latents = tuple(LatentRows(row, roles.of_rows(rows.region.axes[row])) for row in rows.latents)
    rope = rows.rope
    _check_layouts(core, layouts)
    held, why = ((), "") if expanded else held_rows(graph, rows, roles)
    check_order(graph, core, (*rows.of_keys, *(tensor.joined for tensor in held)))
    return LatentAttentionSite(
        name="",
        core=replace(core, layouts=layouts, bias=bias),
        latents=latents,
        rope=rope,
        rope_layout=None if rope is None else roles.layout(rows.region.axes[rope]),
        projection=_projection(graph, rows, latents),
        expanded=expanded,
        held=held,
        not_held=why,
        inner=_inner(graph, core, rows),
        only_new_rows=expanded is None and only_new_rows(axes, roles),
        family="expanded" if expanded else "latent" if held else "none",
        layout_before=_layout_before(expanded is not None, held),
    )


def _layout_before(expanded: bool, held: tuple[CachedTensor, ...]) -> CacheLayout:
    if expanded:
        return "expanded"
    return ("rows", "packed", "split")[min(len(held), 2)]


def _projection(graph: Graph, rows: SharedRows, latents: tuple[LatentRows, ...]) -> Node | None:
    """The linear layer that makes all of ``c_kv``, if that is one row for all heads."""
    widths = [part for each in latents for part in parts_of(each.layout) if part.role == "width"]
    return projection(graph, rows, latents[0].value) if len(widths) < 2 else None


def _check_fills(core: AttentionCore) -> None:
    """A query that may attend to nothing attends to all keys alike where the fill is a number."""
    finite = [term for term in core.bias if np.isfinite(term.fill)]
    if finite and (len(core.bias) > 1 or core.sink is not None):
        raise NotLatentError(
            "finite_fill",
            f"a mask fills scores with {finite[0].fill:g} and something else is added to them, so"
            " what a query that may attend to nothing gets cannot be kept",
            (core.first,),
            "fill with minus infinity, or add the masks before they are applied",
        )


def _placements(axes: CoreAxes) -> tuple[Placement, Placement, Placement, Placement]:
    return axes.query, axes.key, axes.value, axes.output


def _check_core(core: AttentionCore, axes: CoreAxes) -> None:
    _check_fills(core)
    if core.unsupported:
        raise NotLatentError(
            "unsupported_attention", f"the attention node: {core.unsupported}", core.nodes
        )
    if axes.apart:
        raise NotLatentError(
            axes.code,
            f"sequences, heads and tokens cannot be followed through the attention: {axes.apart}",
            (core.first, core.last) if axes.at is None else (axes.at,),
            "keep every token of the scores and probabilities in its place",
        )


def _check_layouts(core: AttentionCore, layouts: CoreLayouts) -> None:
    heads = {part.size for axis in layouts.query for part in axis if part.role == "head"}
    if None in heads:
        raise NotLatentError(
            "head_count", "how many heads it has is not a number", (core.first, core.last)
        )
    if not _can_be_given_back(layouts.output):
        raise NotLatentError(
            "tokens_apart",
            "the sequences or tokens of its output are several axes whose sizes vary",
            (core.last,),
        )


def _can_be_given_back(layout: Layout) -> bool:
    """Whether one axis a role can be taken apart into these."""
    parts = parts_of(layout)
    roles = [part.role for part in parts]
    varying = [part for part in parts if part.size is None]
    return is_standard(layout, QUERY) or all(roles.count(part.role) == 1 for part in varying)


def _inner(graph: Graph, core: AttentionCore, rows: SharedRows) -> tuple[Value, ...]:
    """What is made of the rows on the way to the output, as far as it has a token's numbers."""
    found = above(rows, core)
    made = (value for node in core.nodes for value in graph.results(node))
    found.update((value, None) for value in made if value is not core.output)
    return tuple(found)
