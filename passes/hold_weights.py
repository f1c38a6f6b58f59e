"""Let the operator hold W_UK and W_UV, in the bits that the model stores them in.

Before:   query @ W_UK --> LatentAttention(rows) --> @ W_UV
After:    query --> MultiHeadLatentAttention(rows, kv_b, its scales)

Rows that the model keeps in few bits are looked for by their numbers, and stay as they are, bit
for bit, also where something multiplies them, or their columns, on their way; others are stored in
the narrowest float type that holds each of their numbers (:mod:`mla_opt.emission.kept_weights`).
Whether a call is absorbed or expanded is decided in the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.emission.absorbed import Emitted, shifted
from mla_opt.emission.kept_weights import KeptWeights, kept_weights
from mla_opt.emission.operands import new_rows
from mla_opt.emission.rows import Rows
from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Value
from mla_opt.passes.fuse_cache_append import adopt, anchor, rows_of
from mla_opt.passes.write_cache_in_place import buffer_rows
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite


@dataclass(frozen=True)
class HoldWeights(Pass):
    """Rewrite every site whose matrices are as they were, to take the form that was chosen."""

    name: ClassVar[str] = "hold_weights"

    def requires(self, graph: Graph) -> None:
        """Every site is rebuilt already."""
        if any(site.operands is None for site in graph.sites):
            raise PassError("a site is not rebuilt yet; run absorb_weights first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        chosen = [site for site in graph.sites if site.form == "factored"]
        for site in chosen:
            self._hold(graph, site)
            graph.let_go()
        notes = sorted({note for site in chosen for note in site.notes[-1:]})
        return PassResult(len(graph.sites), len(chosen), notes=tuple(notes))

    def _hold(self, graph: Graph, site: LatentAttentionSite) -> None:
        assert site.weights is not None
        kept = kept_weights(graph, site.weights, graph.dtype(site.core.query))
        builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
        emitted = self._emit(graph, builder, site, kept)
        adopt(graph, site, emitted.values())
        if site.cache is not None and site.cache.layout == "static":
            for value in emitted.caches:
                graph.declare_rows(value, buffer_rows(site.cache.capacity))
        site.notes.append(_told(kept, site.weights.rows.size))

    def _emit(
        self, graph: Graph, builder: Builder, site: LatentAttentionSite, kept: KeptWeights
    ) -> Emitted:
        operands, geometry = site.operands, site.geometry
        assert operands is not None and geometry is not None
        source = rows_of(site) if site.fused else Rows(new=new_rows(builder, site))
        query = site.query_value = _query(builder, site)
        given = {"query": query, "bias": operands.bias, "sink": operands.sink}
        present = {name: value for name, value in given.items() if value is not None}
        stored = site.held_weights = {
            name: builder.constant(tensor, name) for name, tensor in kept.operands().items()
        }
        output, *caches = builder.multi_head_latent_attention(
            {**present, **source.fused_operands(builder), **stored},
            storage=kept.kv_b.storage,
            scale=site.scale,
            geometry=geometry,
            causal=site.core.causal,
            form=site.prefill,
            name="multi_head_latent_attention",
            even=source.is_even(geometry.kv_lora_rank),
        )
        return Emitted(shifted(builder, operands, output), tuple(caches))


def _query(builder: Builder, site: LatentAttentionSite) -> Value:
    """The query before absorption, ``[B, H, S, N + R]``."""
    operands = site.operands
    assert operands is not None
    if operands.query_rope is None:
        return operands.query_nope
    return builder.concat((operands.query_nope, operands.query_rope), 3, "query")


def _told(kept: KeptWeights, numbers: int) -> str:
    kind = kept.kv_b.storage.overload or kept.kv_b.codes.dtype.name
    if kept.factors is not None:
        kind += " times stored factors of columns"
    as_float = numbers * 4
    return (
        f"W_UK and W_UV stay as they are stored ({kind}): {kept.nbytes / 1e6:.2f} MB;"
        f" as float32 {as_float / 1e6:.2f} MB"
    )
