"""Give every site both forms, and let the query length choose between them at run time.

Before:   query, rows --> LatentAttention --> @ W_UV
After:    if S (T + s) > s T:  query, rows --> keys, values of every head --> attention
          else:                query, rows --> LatentAttention --> @ W_UV

``s`` is the geometry's crossover, so the condition is ``S > s T / (T + s)`` in whole numbers: from
that many new tokens on, expanding takes fewer operations. Where the kernel library runs an ONNX
model, its ``PrefillCrossover`` says from where on expanding takes less time. Both branches read the
same stored matrices. Without a cache every call is a whole prompt, S = T, and expanding always
takes fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.cost_model import expanded_from
from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.emission.expanded import emit_expanded
from mla_opt.emission.operands import new_rows
from mla_opt.emission.rows import Rows
from mla_opt.errors import PassError
from mla_opt.geometry import MlaGeometry
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Value
from mla_opt.passes.fuse_cache_append import adopt, anchor, rows_of
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite

Conditions = dict[tuple[str, MlaGeometry], Value]


@dataclass(frozen=True)
class AddPrefillBranch(Pass):
    """Add the expanded form to the sites whose prefill form asks for it."""

    name: ClassVar[str] = "add_prefill_branch"

    def requires(self, graph: Graph) -> None:
        """Every site is rebuilt already."""
        if any(site.operands is None for site in graph.sites):
            raise PassError("a site is not rebuilt yet; run absorb_weights first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order; they share their conditions."""
        conditions: Conditions = {}
        chosen = [s for s in graph.sites if s.prefill != "absorbed" and s.form == "factored"]
        for site in chosen:
            if site.only_new_rows:
                _expand_always(graph, site)
            else:
                _branch(graph, site, conditions)
        return PassResult(matched=len(graph.sites), rewritten=len(chosen))


def _expand_always(graph: Graph, site: LatentAttentionSite) -> None:
    """Without a cache, S = T: the expanded form takes fewer operations at every length."""
    assert site.operands is not None
    builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
    emitted = emit_expanded(builder, site, site.operands, _rows(graph, builder, site))
    adopt(graph, site, emitted.values())
    site.form, site.form_reason = "none", "no cache: a whole prompt is cheaper expanded"
    site.prefill = "expanded"
    site.query_value = None


def _branch(graph: Graph, site: LatentAttentionSite, conditions: Conditions) -> None:
    assert site.operands is not None
    operands = site.operands
    builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
    rows = _rows(graph, builder, site)
    values = builder.branch(
        _condition(builder, site, rows, conditions),
        lambda inner: emit_expanded(inner, site, operands, rows).values(),
        lambda inner: emit_absorbed(inner, site, operands, rows).values(),
        "by_query_length",
    )
    adopt(graph, site, values)


def _rows(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Rows:
    if site.fused:
        return rows_of(site)
    return Rows(new=new_rows(builder, site))


def _condition(
    builder: Builder, site: LatentAttentionSite, rows: Rows, conditions: Conditions
) -> Value:
    assert site.geometry is not None
    key = (site.prefill, site.geometry)
    if key not in conditions:
        emit = _more_than_one if site.prefill == "expanded" else _beyond_crossover
        conditions[key] = emit(builder, site, rows)
    return conditions[key]


def _more_than_one(builder: Builder, site: LatentAttentionSite, rows: Rows) -> Value:
    del rows
    assert site.operands is not None
    new = builder.dimension(site.operands.query_nope, 2)
    return builder.greater(new, builder.integers(1), "is_prefill")


def _beyond_crossover(builder: Builder, site: LatentAttentionSite, rows: Rows) -> Value:
    assert site.operands is not None and site.geometry is not None
    counted = expanded_from(site.geometry, site.prefill)
    first = (rows.past or rows.new)[0]
    limit = builder.prefill_crossover(site.geometry, counted, first, "prefill_crossover")
    new = builder.dimension(site.operands.query_nope, 2)
    seen = builder.dimension(first, 2)
    if rows.past and rows.new:
        seen = builder.add(seen, builder.dimension(rows.new[0], 2), "total_len")
    dear = builder.multiply(new, builder.add(seen, limit, "total_and_limit"), "query_by_total")
    return builder.greater(dear, builder.multiply(seen, limit, "limit_by_total"), "is_prefill")
