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
from mla_opt.emission.rows import Rows
from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Graph, Size, Value
from mla_opt.passes.fuse_cache_append import adopt, anchor
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
            if site.rows is None or site.prefill != "absorbed":
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
    """What the sites share: the lengths, the buffers already made, the masks already widened."""

    graph: Graph
    capacity: int | None
    past_len: Value
    past: Value
    buffers: dict[Value, CacheSlots]
    masks: dict[Value, Value]

    @classmethod
    def begin(cls, graph: Graph, site: LatentAttentionSite, capacity: int | None) -> _Rewriting:
        assert site.cache is not None
        batch = graph.declared_shape(site.cache.past[0])[0]
        past_len = graph.add_input(PAST_LEN, "int32", (batch,))
        builder = graph.builder(graph.nodes()[0], "mla_opt")
        return cls(graph, capacity, past_len, builder.largest(past_len, "past_tokens"), {}, {})

    def rewrite(self, sites: list[LatentAttentionSite]) -> None:
        for site in sites:
            assert site.cache is not None
            grown = site.cache
            first = grown.joined[0] not in self.buffers
            buffer = self._buffer(grown)
            site.cache = buffer
            site.rows = self._rows_of(site, buffer, first)
            self._rebuild(site, buffer)

    def _rows_of(self, site: LatentAttentionSite, buffer: CacheSlots, first: bool) -> Rows:
        """The first site of a buffer writes the new rows, the others find them written."""
        if first:
            return Rows(new=buffer.new, past=buffer.past, past_len=self.past_len)
        builder = self.graph.builder(anchor(self.graph, site), f"{site.name}/mla")
        new = builder.cast_like(builder.dimension(buffer.new[0], 2), self.past_len, "new_rows")
        written = builder.add(self.past_len, new, "written_rows")
        return Rows(new=(), past=buffer.joined, past_len=written)

    def _buffer(self, grown: CacheSlots) -> CacheSlots:
        known = self.buffers.get(grown.joined[0])
        if known is not None:
            return known
        (past,) = grown.past
        batch, heads, _, width = self.graph.declared_shape(past)
        sizes: list[Size] = [((past, 0),), 1, ((self.past, None),), ((past, 3),)]
        self._count_rows(grown, sizes)
        buffer = self.graph.replace_input(
            past, past.name or "", (batch, heads, self._rows(), width)
        )
        made = CacheSlots(
            "static", (buffer,), grown.new, grown.joined, self.past_len, self.capacity
        )
        self.buffers[grown.joined[0]] = made
        return made

    def _count_rows(self, grown: CacheSlots, past: list[Size]) -> None:
        """Let those who count rows of past and present count valid rows, not the buffer's."""
        (new,), (joined,) = grown.new, grown.joined
        batch, one, length, width = past
        for reader in self.graph.shape_readers(grown.past[0]):
            self.graph.replace_shape(reader, past)
        assert isinstance(length, tuple)
        total: Size = (*length, (new, 2))
        for reader in self.graph.shape_readers(joined):
            self.graph.replace_shape(reader, [batch, one, total, width])

    def _rebuild(self, site: LatentAttentionSite, buffer: CacheSlots) -> None:
        assert site.operands is not None and site.rows is not None
        builder = self.graph.builder(anchor(self.graph, site), f"{site.name}/mla")
        bias = site.operands.bias
        if bias is not None and bias not in self.masks:
            like = site.operands.query_nope
            rows = builder.dimension(buffer.past[0], 2)
            self.masks[bias] = builder.widen_mask(bias, rows, like, "mask_of_buffer")
        widened = None if bias is None else self.masks[bias]
        site.operands = replace(site.operands, bias=widened)
        old = buffer.joined
        emitted = emit_absorbed(builder, site, site.operands, site.rows)
        adopt(self.graph, site, emitted.values())
        if emitted.caches:
            self.buffers[old[0]] = buffer
            self.buffers[emitted.caches[0]] = buffer
            self.graph.declare_rows(emitted.caches[0], self._rows())

    def _rows(self) -> int | str:
        """Rows of a buffer as the file declares them."""
        return CAPACITY if self.capacity is None else self.capacity
