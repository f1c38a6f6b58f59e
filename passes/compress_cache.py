"""Make the KV cache the latent cache, and change the model's interface where it has to change.

A model that caches expanded keys and values gets two latent tensors in their place, under the same
names: ``c_kv`` in the keys' and ``k_pe`` in the values'.

Before:   c_kv, k_pe --> keys, values of every head --> concat with past keys, past values
After:    c_kv, k_pe --> concat with past c_kv, past k_pe --> keys, values of every head

``packed`` then puts both halves of a layer into one tensor ``[B, 1, P, C + R]``, and so does
``static``, whose buffers ``write_cache_in_place`` makes of them. ``keep`` leaves a latent cache as
it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile, zip_longest
from typing import ClassVar, Literal

from mla_opt.emission.expanded import expanded_keys, expanded_values
from mla_opt.emission.layout import restored
from mla_opt.emission.operands import new_rows, store_weights
from mla_opt.errors import CACHE_NOT_RECOGNIZED, InputError, PassError, Refusal
from mla_opt.graphs.protocol import Builder, Graph, Size
from mla_opt.handles import Node, Value
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite, PastConcat
from mla_opt.sites.layout import KEYS, Layout, Part, Role

_SEPARATORS = "._/"

ROWS_OF_CACHE: Layout = ((Part("batch", None),), (), (Part("key", None),), (Part("width", None),))
"""Layout of ``[B, 1, T, X]``."""

_GUARDS = 8
"""Most operators one behind the other that stand between two values of an attention."""

CacheMode = Literal["keep", "packed", "static"]


@dataclass(frozen=True)
class CompressCache(Pass):
    """Cache latent rows, in the layout that ``mode`` names."""

    name: ClassVar[str] = "compress_cache"
    mode: CacheMode = "keep"

    def requires(self, graph: Graph) -> None:
        """Every site has its matrices."""
        if any(site.weights is None for site in graph.sites):
            raise PassError("a site has no matrices; run extract_weights first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the caches, expanded ones first."""
        read = _read_elsewhere(graph) if self.mode == "static" else ()
        expanded = [site for site in graph.sites if site.expanded is not None]
        owners: dict[Value, LatentAttentionSite] = {}
        for site in expanded:
            assert site.expanded is not None
            owner = owners.setdefault(site.expanded[0].past, site)
            if owner is site:
                _cache_latent(graph, site)
            else:
                _share(site, owner)
        rewritten = len(expanded)
        refusals: tuple[Refusal, ...] = ()
        if self.mode != "keep":
            rewritten += _pack(graph)
            unknown = tuple(_left_alone(site) for site in graph.sites if _is_unknown(site))
            refusals = (*unknown, *read)
        return PassResult(len(graph.sites), rewritten, refusals)

    def ensures(self, graph: Graph) -> None:
        """No site caches expanded rows any more."""
        if any(site.expanded is not None for site in graph.sites):
            raise PassError("a site still caches expanded rows")


def _read_elsewhere(graph: Graph) -> tuple[Refusal, ...]:
    """Sites whose keys or scores something else reads: a buffer has rows that are none of them."""
    inner = {value for site in graph.sites for value in (*site.inner, site.core.output)}
    joined = {part.joined for site in graph.sites for part in site.expanded or ()}
    refusals = []
    for site in graph.sites:
        for value in site.inner:
            others = [
                graph.label(node)
                for node in graph.consumers(value)
                if not _stays_inside(graph, node, inner)
            ]
            if others or (graph.is_output(value) and value not in joined):
                refusals.append(_exposed(site, value, others))
                break
    return tuple(refusals)


def _stays_inside(graph: Graph, node: Node, inner: set[Value], depth: int = _GUARDS) -> bool:
    """Whether what a node makes is for the attention alone, as scales and casts around it are."""
    if graph.is_shape_reader(node):
        return True
    return depth > 0 and all(
        value in inner
        or (
            not graph.is_output(value)
            and all(_stays_inside(graph, n, inner, depth - 1) for n in graph.consumers(value))
        )
        for value in graph.results(node)
    )


def _exposed(site: LatentAttentionSite, value: Value, others: list[str]) -> Refusal:
    by = f"read by {', '.join(others[:2])}" if others else "returned"
    return Refusal(
        site.name,
        CACHE_NOT_RECOGNIZED,
        f"{value.name} has a place for every key and is {by}, which a buffer with more rows than"
        " keys would change",
        tuple(others[:2]),
        "keep the cache as it is (cache 'keep'), or export the model without that output",
    )


def _is_unknown(site: LatentAttentionSite) -> bool:
    """Whether the site has a cache that was not recognised."""
    return site.cache is None and not site.only_new_rows


def _left_alone(site: LatentAttentionSite) -> Refusal:
    return Refusal(
        site.name,
        CACHE_NOT_RECOGNIZED,
        "its rows are not an input and new rows joined on the token axis of [B, 1, T, X] and"
        " returned, so its cache stays as it is",
    )


def _cache_latent(graph: Graph, site: LatentAttentionSite) -> None:
    """Cache the rows that keys and values are made of, and make those from the joined rows."""
    assert site.expanded is not None and site.weights is not None
    builder = graph.builder(site.core.first, f"{site.name}/mla")
    new = new_rows(builder, site)
    past = _latent_inputs(graph, site)
    joined = tuple(
        builder.concat((old, added), 2, f"cache_{index}")
        for index, (old, added) in enumerate(zip(past, new))
    )
    site.cache = CacheSlots("split", past, new, joined)
    _replace_expanded(graph, builder, site, site.cache)
    site.latent, site.rope = joined[0], joined[1] if site.rope is not None else None
    site.latent_layout, site.rope_layout = _standard_rows(site)
    site.expanded = None


def _standard_rows(site: LatentAttentionSite) -> tuple[Layout, Layout | None]:
    """Layouts of ``[B, 1, T, X]``."""
    return ROWS_OF_CACHE, None if site.rope is None else ROWS_OF_CACHE


def _share(site: LatentAttentionSite, owner: LatentAttentionSite) -> None:
    """Let a site whose layer reads another's keys and values read its rows as well."""
    assert site.expanded is not None
    site.cache = owner.cache
    site.latent, site.rope = owner.latent, owner.rope
    site.latent_layout, site.rope_layout = owner.latent_layout, owner.rope_layout
    site.expanded = None


def _latent_inputs(graph: Graph, site: LatentAttentionSite) -> tuple[Value, ...]:
    """Inputs in the place of the expanded caches; none for the values' when R is 0."""
    assert site.expanded is not None
    keys, values = site.expanded
    latent = _latent_input(graph, keys, site.latent)
    if site.rope is not None:
        return latent, _latent_input(graph, values, site.rope)
    graph.remove_input(values.past, like=latent, moved=_moved(values))
    return (latent,)


def _latent_input(graph: Graph, part: PastConcat, rows: Value) -> Value:
    """The input that takes the place of an expanded cache: ``[B, 1, P, width of the rows]``."""
    shape = graph.example_shape(rows)
    assert shape is not None
    declared = graph.declared_shape(part.past)
    sequences = [place for place, axis in enumerate(part.layout) if _is_batch(axis)]
    batch = declared[sequences[0]] if sequences else 1
    past = declared[part.axis]
    shaped = (batch, 1, past, shape[-1])
    return graph.replace_input(part.past, part.past.name or "", shaped, moved=_moved(part))


def _moved(part: PastConcat) -> dict[int, int]:
    """Which axis of ``[B, 1, P, X]`` counts what an axis of an expanded cache did."""
    counted: dict[Role, int] = {"batch": 0, "key": 2}
    return {
        place: counted[axis[0].role]
        for place, axis in enumerate(part.layout)
        if axis and axis[0].role in counted
    }


def _is_batch(axis: tuple[Part, ...]) -> bool:
    return any(part.role == "batch" for part in axis)


def _replace_expanded(
    graph: Graph, builder: Builder, site: LatentAttentionSite, cache: CacheSlots
) -> None:
    """Let the attention read keys and values made anew, and the outputs return the latent rows."""
    assert site.expanded is not None and site.weights is not None
    joined = cache.joined
    weights = store_weights(graph, builder, site, site.weights)
    rope = joined[1] if len(joined) == 2 else None
    keys = expanded_keys(builder, site, weights, joined[0], rope)
    values = expanded_values(builder, weights, joined[0])
    halves = (_in_original_dims(builder, site, keys), values)
    for part, half, latent in zip_longest(site.expanded, halves, joined[: len(site.expanded)]):
        _redirect_readers(graph, part.joined, part.layout, cache)
        if latent is None:
            graph.remove_output(part.joined)
        else:
            graph.replace_output(part.joined, latent)
        graph.replace(part.joined, restored(builder, half, part.layout, KEYS, "as_it_was"))


def _redirect_readers(graph: Graph, old: Value, layout: Layout, cache: CacheSlots) -> None:
    """Let those who read the shape of joined rows count past and new rows.

    What joins them will be the operator, which may read a mask that is made from that shape.
    """
    shape, readers = graph.example_shape(old), graph.shape_readers(old)
    if not readers or shape is None:
        return
    past, new = cache.past[0], cache.new[0]
    counted: dict[Role, Size] = {"batch": ((past, 0),), "key": ((past, 2), (new, 2))}
    sizes: list[Size] = [
        counted[axis[0].role] if axis and axis[0].role in counted else size
        for axis, size in zip(layout, shape)
    ]
    for reader in readers:
        graph.replace_shape(reader, sizes)


def _in_original_dims(builder: Builder, site: LatentAttentionSite, keys: Value) -> Value:
    """Keys ``[B, H, N + R, T]`` as the original has them: ``[B, H, T, D]``, its order and scale."""
    weights = site.weights
    assert weights is not None
    by_token = builder.transpose(keys, (0, 1, 3, 2), "keys_by_token")
    order = (*weights.nope_dims, *weights.rope_dims)
    if order != tuple(range(len(order))):
        places = tuple(order.index(dim) for dim in range(len(order)))
        by_token = builder.gather(by_token, places, 3, "keys_in_order")
    if weights.key_scale == 1.0:
        return by_token
    return builder.scaled(by_token, weights.key_scale, by_token, "keys_scaled")


def _pack(graph: Graph) -> int:
    """Put both halves of every cache into one tensor; returns how many sites that touched.

    Raises:
        InputError: something besides the attention reads a half that would be gone.
    """
    packed: dict[Value, tuple[CacheSlots, tuple[Value, ...]]] = {}
    sites = [site for site in graph.sites if site.cache is not None and len(site.cache.past) == 2]
    for site in sites:
        assert site.cache is not None
        key = site.cache.joined[0]
        if key not in packed:
            packed[key] = _pack_one(graph, site)
        site.cache, halves = packed[key]
        site.latent, site.rope = halves
    return len(sites)


def _pack_one(graph: Graph, site: LatentAttentionSite) -> tuple[CacheSlots, tuple[Value, ...]]:
    assert site.cache is not None and site.weights is not None
    builder = graph.builder(site.core.first, f"{site.name}/mla")
    split = site.cache
    for past in split.past:
        _check_unread(graph, site, past)
    c, r = site.weights.w_uk.shape[2], len(site.weights.rope_dims)
    past = _packed_input(graph, split.past, c + r)
    new = builder.concat(split.new, 3, "latent_rows")
    joined = builder.concat((past, new), 2, "cache")
    halves = builder.split(joined, (c, r), 3, ("c_kv", "k_pe"))
    name = packed_name([value.name or "" for value in split.joined])
    graph.merge_outputs(split.joined, joined, name)
    packed = CacheSlots("packed", (past,), (new,), (joined,))
    for old, half in zip(split.joined, halves):
        _redirect_readers(graph, old, ROWS_OF_CACHE, packed)
        graph.replace(old, half)
    return packed, halves


def _check_unread(graph: Graph, site: LatentAttentionSite, past: Value) -> None:
    """Only the concatenation with new rows reads an input that will be another."""
    others = [n for n in graph.consumers(past) if not graph.is_shape_reader(n)]
    if len(others) > 1:
        readers = ", ".join(graph.label(node) for node in others)
        raise InputError(
            f"cache input {past.name!r} of {site.name} is read by {readers}: it cannot be packed;"
            " keep the cache as it is (cache 'keep')"
        )


def _packed_input(graph: Graph, halves: tuple[Value, ...], width: int) -> Value:
    first, second = halves
    batch, _, past, _ = graph.declared_shape(first)
    name = packed_name([value.name or "" for value in halves])
    graph.remove_input(second, like=first)
    return graph.replace_input(first, name, (batch, 1, past, width))


def _shared_beginning(first: str, second: str) -> str:
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))


def packed_name(names: list[str]) -> str:
    """Name of the tensor of both halves: ``past.0.keys, past.0.values -> past.0.latent``."""
    first, second = names
    prefix = _shared_beginning(first, second)
    suffix = _shared_beginning(first[::-1], second[::-1])[::-1]
    start = max(prefix.rfind(separator) for separator in _SEPARATORS) + 1
    end = min((suffix.find(s) for s in _SEPARATORS if s in suffix), default=len(suffix))
    if not start and end == len(suffix):
        raise InputError(f"caches {first!r} and {second!r} share no name to call the packed one by")
    return f"{prefix[:start]}latent{suffix[end:]}"
