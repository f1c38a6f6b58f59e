"""The rows of a layer whole in one tensor, or in two halves, in the place of what a model cached.

    c_kv, k_pe --> [c_kv | k_pe] --> behind the past --> one tensor [B, 1, T, C + R]
                                 --> halves, each behind its past --> two [B, 1, T, (C + R) / 2]

In the middle is where a row is cut, wherever in it c_kv ends: runtimes that know one width for the
two caches of a layer can hold it then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise, takewhile

from mla_opt.emission.cache_interface import (
    declared_output,
    moved_axes,
    redirect_readers,
    rows_input,
)
from mla_opt.emission.cached import with_new_rows
from mla_opt.emission.expanded import HALVES
from mla_opt.emission.layout import restored
from mla_opt.emission.operands import as_rows
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Value
from mla_opt.sites import CachedTensor, CacheSlots, LatentAttentionSite
from mla_opt.sites.cache import Run
from mla_opt.sites.layout import KEYS, Layout, Part

_SEPARATORS = "._/"

ROWS_OF_CACHE: Layout = ((Part("batch", None),), (), (Part("key", None),), (Part("width", None),))
"""Layout of ``[B, 1, T, X]``."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A cache of whole rows, or of their halves.

    Attributes:
        parts: ``c_kv`` and, unless R is 0, ``k_pe`` of the joined rows.
        held: the tensors of the cache.
    """

    cache: CacheSlots
    parts: tuple[Value, ...]
    held: tuple[CachedTensor, ...]


def widths(site: LatentAttentionSite) -> tuple[int, int]:
    """C and R."""
    assert site.weights is not None
    return site.weights.w_uk.shape[2], len(site.weights.rope_dims)


def tensors(
    cache: CacheSlots, added: Sequence[Value], widths: Sequence[int]
) -> tuple[CachedTensor, ...]:
    """Tensors ``[B, 1, T, X]`` of a cache, with what they hold: each some of the row, in order."""
    layouts, ends = (ROWS_OF_CACHE,) * 4, list(accumulate(widths, initial=0))
    places = (tuple(range(*each)) for each in pairwise(ends))
    return tuple(
        CachedTensor(past, past, new, joined, joined, joined, *layouts, None, held, cache.positions)
        for past, new, joined, held in zip(cache.past, added, cache.joined, places)
    )


def pack(graph: Graph, site: LatentAttentionSite, run: Run | None, *, even: bool) -> Packed:
    """Cache the rows of a site whole, or in halves, and let all read the new ones."""
    builder = graph.builder(site.core.first, f"{site.name}/mla")
    held, (c, r) = site.held, widths(site)
    count = 2 if even else 1
    width = (c + r) // count
    new, positions = _packed_rows(builder, held), held[0].positions
    past = tuple(_packed_inputs(graph, held, width, count))
    added = builder.split(new, (width, width), 3, HALVES) if even else (new,)
    names = ("cache_0", "cache_1") if even else ("cache",)
    both = [
        with_new_rows(builder, old, rows, width, positions, name)
        for old, rows, name in zip(past, added, names)
    ]
    joined, kept = (tuple(each) for each in zip(*((each.joined, each.kept) for each in both)))
    rows = builder.concat(joined, 3, "latent_rows") if even else joined[0]
    parts = builder.split(rows, (c, r), 3, ("c_kv", "k_pe")) if r else (rows,)
    _return(graph, held, kept, width)
    cache = CacheSlots("even" if even else "packed", past, (new,), joined, positions=positions)
    cache.returned = () if positions is None else kept
    cache.start = None if run is None else run.start
    for tensor in held:
        redirect_readers(graph, builder, tensor, cache)
        was = _as_it_was(builder, tensor, rows, parts, c)
        graph.replace(tensor.joined, restored(builder, was, tensor.layout, KEYS, "as_it_was"))
    return Packed(cache, parts, tensors(cache, added, (width,) * count))


def _packed_inputs(
    graph: Graph, held: Sequence[CachedTensor], width: int, count: int
) -> Iterator[Value]:
    """As many inputs ``[B, 1, P, width]`` in the place of those that were, by their names."""
    if count == len(held):
        for tensor in held:
            yield rows_input(graph, tensor, tensor.past.name or "", width)
        return
    first, *others = held
    past = rows_input(graph, first, _name_for([tensor.past for tensor in held]), width)
    for other in others:
        graph.remove_input(other.past, like=past, moved=moved_axes(other.past_layout))
    yield past


def _return(graph: Graph, held: Sequence[CachedTensor], kept: Sequence[Value], width: int) -> None:
    """Return what is kept, in the place of what was returned."""
    if len(kept) == len(held):
        for tensor, rows in zip(held, kept):
            graph.replace_output(tensor.output, rows, declared_output(graph, tensor, width))
        return
    olds = [tensor.output for tensor in held]
    graph.merge_outputs(olds, kept[0], _name_for(olds), declared_output(graph, held[0], width))


def _packed_rows(builder: Builder, held: Sequence[CachedTensor]) -> Value:
    """The new rows ``[B, 1, S, C + R]``."""
    parts = [as_rows(builder, tensor.new, tensor.new_layout) for tensor in held]
    places = [place for tensor in held for place in tensor.places]
    new = parts[0] if len(parts) == 1 else builder.concat(parts, 3, "latent_rows")
    if places == sorted(places):
        return new
    return builder.gather(new, [places.index(at) for at in range(len(places))], 3, "latent_rows")


def _as_it_was(
    builder: Builder, tensor: CachedTensor, joined: Value, parts: tuple[Value, ...], c: int
) -> Value:
    """What a tensor held, in its order, of the joined rows: ``[B, 1, T, X]``."""
    wide = len(tensor.places)
    if tensor.places == tuple(range(wide)) and wide == c:
        return parts[0]
    if tensor.places == tuple(range(c, c + wide)) and len(parts) == 2:
        return parts[1]
    return builder.gather(joined, tensor.places, 3, "rows_as_they_were")


def _shared_beginning(first: str, second: str) -> str:
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))


def _name_for(values: Sequence[Value]) -> str:
    """What the one tensor is called that takes the place of ``values``."""
    names = [value.name or "" for value in values]
    return names[0] if len(names) == 1 else packed_name(names)


def packed_name(names: list[str]) -> str:
    """Name of the tensor of all parts: ``past.0.keys, past.0.values -> past.0.latent``."""
    first = names[0]
    prefix = reduce(_shared_beginning, names)
    suffix = reduce(_shared_beginning, [name[::-1] for name in names])[::-1]
    start = max(prefix.rfind(separator) for separator in _SEPARATORS) + 1
    end = min((suffix.find(s) for s in _SEPARATORS if s in suffix), default=len(suffix))
    if not start and end == len(suffix):
        return f"{first}_latent"
    return f"{prefix[:start]}latent{suffix[end:]}"
