"""Make the latent caches buffers of a fixed number of rows that are written in place.

Before:   past [B,1,P,C+R], new --> LatentAttention --> present [B,1,P+S,C+R]
After:    buffer [B,1,M,C+R], past_len [B], new --> LatentAttention --> the same buffer, S rows on

One more input, ``past_len``, says how many rows of each sequence's buffer are valid; what counted
the rows of the past now reads it. Masks keep the columns that the model makes, and columns beyond
them are masked. All sequences of one call have the same ``past_len``: shorter ones are padded on
the left, as the model's own masks have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Builder, Graph, Size
from mla_opt.handles import Value
from mla_opt.passes.fuse_cache_append import adopt, anchor, rows_of
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite

PAST_LEN = "past_len"
CAPACITY = "capacity"


@dataclass(frozen=True)
class WriteCacheInPlace(Pass):
    """Turn growing caches of one tensor into buffers; ``capacity`` fixes their rows, if given."""

    name: ClassVar[str] = "write_cache_in_place"
    capacity: int | None = None

    def requires(self, graph: Graph) -> None:
        """Every cache is one tensor and handed to the operator."""
        for site in _cached(graph):
            if not site.fused or site.prefill != "absorbed":
                raise PassError(f"{site.name} does not append to its cache in one operator")
            if site.cache is not None and len(site.cache.past) != 1:
                raise PassError(f"{site.name} keeps its cache in two tensors; pack it first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        sites = _cached(graph)
        if sites:
            _Rewriting.begin(graph, sites[0], self.capacity).rewrite(sites)
        return PassResult(matched=len(graph.sites), rewritten=len(sites))


def _cached(graph: Graph) -> list[LatentAttentionSite]:
    return [site for site in graph.sites if site.cache is not None and site.form != "none"]


@dataclass(slots=True)
class _Rewriting:
    """What the sites share: the lengths of the past, and the masks already widened."""

    graph: Graph
    capacity: int | None
    past_len: Value
    past: Value
    masks: dict[Value, Value]

    @classmethod
    def begin(cls, graph: Graph, site: LatentAttentionSite, capacity: int | None) -> _Rewriting:
        assert site.cache is not None
        batch = graph.declared_shape(site.cache.past[0])[0]
        past_len = graph.add_input(PAST_LEN, "int32", (batch,))
        builder = graph.builder(graph.nodes()[0], "mla_opt")
        return cls(graph, capacity, past_len, builder.largest(past_len, "past_tokens"), {})

    def rewrite(self, sites: list[LatentAttentionSite]) -> None:
        for site in sites:
            assert site.cache is not None
            if site.appends:
                self._make_buffer(site.cache)
            self._rebuild(site, site.cache)

    def _make_buffer(self, cache: CacheSlots) -> None:
        """Turn a growing cache into a buffer, for all sites that share it."""
        (past,) = cache.past
        batch, heads, _, width = self.graph.declared_shape(past)
        sizes: list[Size] = [((past, 0),), 1, ((self.past, None),), ((past, 3),)]
        self._count_rows(cache, sizes)
        shape = (batch, heads, self._rows(), width)
        cache.past = (self.graph.replace_input(past, past.name or "", shape),)
        cache.layout, cache.capacity, cache.past_len = "static", self.capacity, self.past_len

    def _count_rows(self, cache: CacheSlots, past: list[Size]) -> None:
        """Let those who count rows of past and present count valid rows, not the buffer's."""
        (new,), (joined,) = cache.new, cache.joined
        batch, one, length, width = past
        for reader in self.graph.shape_readers(cache.past[0]):
            self.graph.replace_shape(reader, past)
        assert isinstance(length, tuple)
        total: Size = (*length, (new, 2))
        for reader in self.graph.shape_readers(joined):
            self.graph.replace_shape(reader, [batch, one, total, width])

    def _rebuild(self, site: LatentAttentionSite, cache: CacheSlots) -> None:
        assert site.operands is not None
        builder = self.graph.builder(anchor(self.graph, site), f"{site.name}/mla")
        if not site.appends and cache.written is None:
            cache.written = self._written(builder, cache)
        site.operands = replace(site.operands, bias=self._mask(builder, site, cache))
        emitted = emit_absorbed(builder, site, site.operands, rows_of(site))
        adopt(self.graph, site, emitted.values())
        for value in emitted.caches:
            self.graph.declare_rows(value, self._rows())

    def _written(self, builder: Builder, cache: CacheSlots) -> Value:
        """Valid rows once the new ones are written: what the sites that only read go by."""
        new = builder.cast_like(builder.dimension(cache.new[0], 2), self.past_len, "new_rows")
        return builder.add(self.past_len, new, "written_rows")

    def _mask(self, builder: Builder, site: LatentAttentionSite, cache: CacheSlots) -> Value | None:
        """The bias of a site with a column for every row of the buffer; made once for all."""
        assert site.operands is not None
        bias, like = site.operands.bias, site.operands.query_nope
        if bias is None:
            return None
        if bias not in self.masks:
            rows = builder.dimension(cache.past[0], 2)
            self.masks[bias] = builder.widen_mask(bias, rows, like, "mask_of_buffer")
        return self.masks[bias]

    def _rows(self) -> int | str:
        """Rows of a buffer as the file declares them."""
        return CAPACITY if self.capacity is None else self.capacity
