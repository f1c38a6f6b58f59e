"""Make the latent caches buffers of a fixed number of rows that are written in place.

Before:   past [B,1,P,C+R], new --> LatentAttention --> present [B,1,P+S,C+R]
After:    buffer [B,1,M,C+R], past_len [B], new --> LatentAttention --> the same buffer, S rows on

One more input, ``past_len``, says how many rows of each sequence's buffer are valid; what counted
the rows of the past now reads it, or takes the difference of the lengths of two inputs where shapes
must not depend on data (``count``). Masks keep the columns that the model makes, and columns beyond
them are masked. All sequences of one call have the same ``past_len``: shorter ones are padded on
the left, as the model's own masks have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.errors import InputError, PassError
from mla_opt.graphs.protocol import EXAMPLE, FAR, Builder, Graph, Size
from mla_opt.handles import Value
from mla_opt.passes.fuse_cache_append import adopt, anchor, rows_of
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite

PAST_LEN = "past_len"
CAPACITY = "capacity"

PastCount = Literal["lengths", "shapes"]


@dataclass(frozen=True)
class WriteCacheInPlace(Pass):
    """Turn growing caches of one tensor into buffers; ``capacity`` fixes their rows, if given.

    ``count`` says what the tokens of the past are counted by: the data of ``past_len``, or the
    shapes of the inputs that hold all tokens and the new ones.
    """

    name: ClassVar[str] = "write_cache_in_place"
    capacity: int | None = None
    count: PastCount = "lengths"

    def requires(self, graph: Graph) -> None:
        """Every cache is one tensor and handed to the operator."""
        for site in _cached(graph):
            if not site.fused or not (site.prefill == "absorbed" or site.chooses):
                raise PassError(f"{site.name} does not append to its cache in one operator")
            if site.cache is not None and len(site.cache.past) != _tensors_of(site.cache):
                raise PassError(f"{site.name} keeps its cache in two tensors; pack it first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        sites = _cached(graph)
        if self.count == "shapes":
            check_counted_by_past_len(sites)
        if sites:
            _Rewriting.begin(graph, sites, self).rewrite(sites)
        return PassResult(matched=len(graph.sites), rewritten=len(sites))


def _cached(graph: Graph) -> list[LatentAttentionSite]:
    return [site for site in graph.sites if site.can_append]


def _tensors_of(cache: CacheSlots) -> int:
    """Tensors of a cache that can be a buffer: of codes, there are two."""
    return 1 if cache.row_bytes is None else 2


def add_past_len(graph: Graph, site: LatentAttentionSite) -> Value:
    """Add the input ``past_len``, one number for each sequence of the site's cache."""
    assert site.cache is not None
    batch = graph.declared_shape(site.cache.past[0])[0]
    return graph.add_input(PAST_LEN, "int32", (batch,))


def make_buffer(
    graph: Graph,
    cache: CacheSlots,
    past_len: Value,
    past: Callable[[], Size],
    capacity: int | None,
) -> None:
    """Turn a growing cache into a buffer, for all sites that share it.

    Those who count rows of past and present count ``past`` tokens and the new ones, not the
    buffer's; it is asked only where there is somebody who counts.
    """
    if cache.start is None:  # else nobody counts them who is read himself
        _count_rows(graph, cache, past)
    cache.past = tuple(_buffer(graph, old, capacity) for old in cache.past)
    cache.layout, cache.capacity, cache.past_len, cache.own = "static", capacity, past_len, False


def check_counted_by_past_len(sites: Sequence[LatentAttentionSite]) -> None:
    """A graph for TensorRT counts the rows of its buffers by ``past_len`` alone.

    Raises:
        InputError: the model says itself where new rows go.
    """
    for site in sites:
        if site.cache is not None and site.cache.start is not None:
            raise InputError(
                f"{site.name} puts new rows where its own operands say (seqlens_k), not where"
                " past_len does; export the model with an attention in separate operators"
            )


def _buffer(graph: Graph, old: Value, capacity: int | None) -> Value:
    batch, heads, _, width = graph.declared_shape(old)
    shape = (batch, heads, buffer_rows(capacity), width)
    return graph.replace_input(old, old.name or "", shape)


def buffer_rows(capacity: int | None) -> int | str:
    """Rows of a buffer as the file declares them."""
    return CAPACITY if capacity is None else capacity


def _count_rows(graph: Graph, cache: CacheSlots, past: Callable[[], Size]) -> None:
    readers = [
        (reader, old, is_joined)
        for old, joined in zip(cache.past, cache.joined)
        for value, is_joined in ((old, False), (joined, True))
        for reader in graph.shape_readers(value)
    ]
    if not readers:
        return
    new, length = cache.new[0], past()
    total: Size = (length, (new, 2)) if isinstance(length, int) else (*length, (new, 2))
    # Not of codes, if there are such: the last tensor is one whose shape every runtime tells.
    batch: Size = ((cache.past[-1], 0),)
    for reader, old, is_joined in readers:
        width = graph.declared_shape(old)[3]
        columns: Size = width if isinstance(width, int) else ((old, 3),)
        graph.replace_shape(reader, [batch, 1, total if is_joined else length, columns])


@dataclass(slots=True)
class _Rewriting:
    """What the sites share: the lengths of the past, and the masks already widened."""

    graph: Graph
    options: WriteCacheInPlace
    past_len: Value | None
    lengths: _Lengths | None
    masks: dict[Value, Value] = field(default_factory=dict)
    past: Value | None = None

    @classmethod
    def begin(
        cls, graph: Graph, sites: Sequence[LatentAttentionSite], options: WriteCacheInPlace
    ) -> _Rewriting:
        # looked for while the inputs are those that the model came with
        lengths = _Lengths.of(graph) if options.count == "shapes" else None
        counted = [each for each in sites if each.cache is not None and each.cache.start is None]
        past_len = add_past_len(graph, counted[0]) if counted else None
        return cls(graph, options, past_len, lengths)

    def rewrite(self, sites: list[LatentAttentionSite]) -> None:
        for site in sites:
            assert site.cache is not None
            if site.appends:
                make_buffer(
                    self.graph,
                    site.cache,
                    self._past_len(site.cache),
                    self._past_tokens,
                    self.options.capacity,
                )
            self._rebuild(site, site.cache)

    def _past_len(self, cache: CacheSlots) -> Value:
        """Valid rows of each sequence before the call: an input, or what the model says itself."""
        known = self.past_len if cache.start is None else cache.start
        assert known is not None
        return known

    def _past_tokens(self) -> Size:
        assert self.past_len is not None
        if self.past is None:
            builder = self.graph.builder(self.graph.nodes()[0], "mla_opt")
            if self.options.count == "lengths":
                self.past = builder.largest(self.past_len, "past_tokens")
            else:
                self.past = _past_by_shapes(builder, self.lengths)
        return ((self.past, None),)

    def _rebuild(self, site: LatentAttentionSite, cache: CacheSlots) -> None:
        assert site.operands is not None
        builder = self.graph.builder(anchor(self.graph, site), f"{site.name}/mla")
        if not site.appends and cache.written is None:
            cache.written = self._written(builder, cache)
        site.operands = replace(site.operands, bias=self._mask(builder, site, cache))
        emitted = emit_absorbed(builder, site, site.operands, rows_of(site))
        adopt(self.graph, site, emitted.values())
        for value in emitted.caches:
            self.graph.declare_rows(value, buffer_rows(self.options.capacity))

    def _written(self, builder: Builder, cache: CacheSlots) -> Value:
        """Valid rows once the new ones are written: what the sites that only read go by."""
        past_len = self._past_len(cache)
        new = builder.cast_like(builder.dimension(cache.new[0], 2), past_len, "new_rows")
        return builder.add(past_len, new, "written_rows")

    def _mask(self, builder: Builder, site: LatentAttentionSite, cache: CacheSlots) -> Value | None:
        """The bias of a site with a column for every row of the buffer; made once for all."""
        assert site.operands is not None
        bias, like = site.operands.bias, site.operands.query_nope
        if bias is None:
            return None
        if bias not in self.masks:
            rows = builder.dimension(cache.past[-1], 2)
            self.masks[bias] = builder.widen_mask(bias, rows, like, "mask_of_buffer")
        return self.masks[bias]


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Axes of inputs that count all tokens, and the new ones."""

    total: tuple[Value, int]
    new: tuple[Value, int]

    @classmethod
    def of(cls, graph: Graph) -> _Lengths | None:
        calls = [graph.nearest_inputs(*sizes) for sizes in (EXAMPLE, FAR)]
        shapes = [each for _, each in calls]
        new = _axis(graph, shapes, [sizes[1] for sizes, _ in calls])
        total = _axis(graph, shapes, [sizes[1] + sizes[2] for sizes, _ in calls])
        return None if new is None or total is None else cls(total, new)


def _past_by_shapes(builder: Builder, lengths: _Lengths | None) -> Value:
    """All tokens less the new ones, int64 ``[1]``: what the shapes of two inputs say.

    Raises:
        InputError: no input is as long as past and new tokens together.
    """
    if lengths is None:
        raise InputError(
            "no input is as long as past and new tokens together, as an attention mask is, so the"
            " past cannot be counted without reading past_len; export the model with a mask"
        )
    total, new = builder.dimension(*lengths.total), builder.dimension(*lengths.new)
    return builder.subtract(total, new, "past_tokens")


def _axis(
    graph: Graph, calls: Sequence[Mapping[str, tuple[int, ...]]], lengths: list[int]
) -> tuple[Value, int] | None:
    """An axis of an input that is this long in the calls, one length each."""
    for value in graph.taken():
        by_axis = zip(*(shapes.get(value.name or "", ()) for shapes in calls))
        for axis, sizes in enumerate(by_axis):
            if list(sizes) == lengths:
                return value, axis
    return None
