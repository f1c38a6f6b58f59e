"""Make the KV cache the latent cache, and change the model's interface where it has to change.

A model that caches expanded keys and values gets two latent tensors in their place, under the same
names: ``c_kv`` in the keys' and ``k_pe`` in the values'.

Before:   c_kv, k_pe --> keys, values of every head --> concat with past keys, past values
After:    c_kv, k_pe --> concat with past c_kv, past k_pe --> keys, values of every head

``packed`` then puts the rows of a layer into one tensor ``[B, 1, P, C + R]``, whatever axes and
order the model has them in, and so does ``static``, whose buffers ``write_cache_in_place`` makes of
them. ``even`` puts the first and the second half of each row into the two tensors that the model
has for a layer, both ``[B, 1, P, (C + R) / 2]``. ``keep`` leaves a latent cache as it is. Buffers
that the model writes at positions of its own stay such: new rows are put in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, Literal

from mla_opt.emission.cache_interface import (
    declared_output,
    moved_axes,
    redirect_readers,
    rows_input,
)
from mla_opt.emission.cached import with_new_rows
from mla_opt.emission.expanded import expanded_keys, expanded_values
from mla_opt.emission.layout import restored
from mla_opt.emission.operands import new_rows, store_weights
from mla_opt.emission.rows_in_a_run import let_it_grow, run_of
from mla_opt.emission.whole_rows import ROWS_OF_CACHE, Packed, pack, tensors, widths
from mla_opt.errors import CACHE_NOT_RECOGNIZED, PassError, Refusal
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Value
from mla_opt.matching.exposed_keys import exposed_sites
from mla_opt.matching.same_past import with_another_past
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CachedTensor, CacheSlots, LatentAttentionSite, LatentRows
from mla_opt.sites.layout import KEYS

CacheMode = Literal["keep", "packed", "static", "even"]


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
        read = exposed_sites(graph) if self.mode == "static" else ()
        warnings = _counted_apart(graph) if self.mode == "static" else ()
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
        if self.mode == "keep":
            return PassResult(len(graph.sites), rewritten)
        packing = _Packing(graph, self.mode != "static", self.mode == "even")
        packed = sum(packing.pack(site) for site in graph.sites)
        rewritten = max(rewritten, packed)
        unknown = tuple(_left_alone(site) for site in graph.sites if _is_unknown(site))
        told = {refusal.site for refusal in unknown}
        others = (refusal for refusal in read if refusal.site not in told)
        refusals = (*unknown, *others)
        return PassResult(len(graph.sites), rewritten, refusals, packing.notes(), warnings)

    def ensures(self, graph: Graph) -> None:
        """No site caches expanded rows any more."""
        if any(site.expanded is not None for site in graph.sites):
            raise PassError("a site still caches expanded rows")


def _is_unknown(site: LatentAttentionSite) -> bool:
    """Whether the site has a cache that was not recognised."""
    return site.cache is None and not site.only_new_rows


def _counted_apart(graph: Graph) -> tuple[str, ...]:
    """What is to be told where one ``past_len`` counts pasts that might be of different lengths.

    A call in which they are has no counterpart then; none is computed wrongly.
    """
    counted = [site for site in graph.sites if (site.expanded or site.held) and not run_of(site)]
    apart = with_another_past(graph, counted)
    if not apart:
        return ()
    names = ", ".join(site.name for site in apart)
    return (
        f"the caches of {counted[0].name} and of {names} declare different sizes for the past, and"
        " one past_len counts the rows of all: keep them of one length",
    )


def _left_alone(site: LatentAttentionSite) -> Refusal:
    return Refusal(
        site.name,
        CACHE_NOT_RECOGNIZED,
        f"its cache stays as it is: {site.not_held}",
        remedy=_REMEDY_OF_BUFFERS if _is_buffer(site) else _REMEDY,
    )


_REMEDY = (
    "cache c_kv after its norm and k_pe after rotary embedding, join past and new rows along the"
    " tokens, and return them; or keep the cache as it is (cache 'keep')"
)
_REMEDY_OF_BUFFERS = (
    "keep the buffer as it is (cache 'keep'), or export the model with a cache that grows"
)


def _is_buffer(site: LatentAttentionSite) -> bool:
    return any(tensor.positions is not None for tensor in site.held)


def _cache_latent(graph: Graph, site: LatentAttentionSite) -> None:
    """Cache the rows that keys and values are made of, and make those from the joined rows."""
    assert site.expanded is not None and site.weights is not None
    builder = graph.builder(site.core.first, f"{site.name}/mla")
    new = new_rows(builder, site)
    past = _latent_inputs(graph, site)
    each_width, positions = widths(site), site.expanded[0].positions
    both = [
        with_new_rows(builder, old, added, width, positions, f"cache_{index}")
        for index, (old, added, width) in enumerate(zip(past, new, each_width))
    ]
    joined = tuple(each.joined for each in both)
    kept = tuple(each.kept for each in both) if positions is not None else ()
    site.cache = CacheSlots("split", past, new, joined, positions=positions, returned=kept)
    _replace_expanded(graph, builder, site)
    _use_rows(site, joined if site.rope is not None else joined[:1])
    site.held, site.expanded = _held(site, site.cache), None


def _use_rows(site: LatentAttentionSite, halves: Sequence[Value]) -> None:
    """Let a site read ``c_kv`` and, if there is one, ``k_pe`` as ``[B, 1, T, X]``."""
    site.latents = (LatentRows(halves[0], ROWS_OF_CACHE),)
    site.rope, site.rope_layout = (halves[1], ROWS_OF_CACHE) if len(halves) == 2 else (None, None)


def _held(site: LatentAttentionSite, cache: CacheSlots) -> tuple[CachedTensor, ...]:
    """The latent caches of a site whose model had expanded ones."""
    return tensors(cache, cache.new, widths(site))


def _share(site: LatentAttentionSite, owner: LatentAttentionSite) -> None:
    """Let a site whose layer reads another's keys and values read its rows as well."""
    assert site.expanded is not None
    site.cache, site.held = owner.cache, owner.held
    site.latents = owner.latents
    site.rope, site.rope_layout = owner.rope, owner.rope_layout
    site.expanded = None


def _latent_inputs(graph: Graph, site: LatentAttentionSite) -> tuple[Value, ...]:
    """Inputs in the place of the expanded caches; none for the values' when R is 0."""
    assert site.expanded is not None
    keys, values = site.expanded
    c, r = widths(site)
    latent = rows_input(graph, keys, keys.past.name or "", c)
    if site.rope is not None:
        return latent, rows_input(graph, values, values.past.name or "", r)
    graph.remove_input(values.past, like=latent, moved=moved_axes(values.past_layout))
    return (latent,)


def _replace_expanded(graph: Graph, builder: Builder, site: LatentAttentionSite) -> None:
    """Let the attention read keys and values made anew, and the outputs return the latent rows."""
    assert site.expanded is not None and site.weights is not None and site.cache is not None
    cache, joined = site.cache, site.cache.joined
    weights = store_weights(graph, builder, site, site.weights)
    rope = joined[1] if len(joined) == 2 else None
    keys = expanded_keys(builder, site, weights, joined[0], rope)
    values = expanded_values(builder, weights, joined[0])
    halves = (_in_original_dims(builder, site, keys), values)
    for part, half, latent, width in zip_longest(
        site.expanded, halves, cache.outputs, widths(site)
    ):
        redirect_readers(graph, builder, part, cache)
        if latent is None:
            graph.remove_output(part.output)
        else:
            graph.replace_output(part.output, latent, declared_output(graph, part, width))
        graph.replace(part.joined, restored(builder, half, part.layout, KEYS, "as_it_was"))


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


@dataclass(slots=True)
class _Packing:
    """What is packed already, by the tensors that held the rows, and what could not be."""

    graph: Graph
    buffers: bool
    even: bool
    done: dict[tuple[CachedTensor, ...], Packed] = field(default_factory=dict)
    taken: dict[Value, tuple[CachedTensor, ...]] = field(default_factory=dict)
    found: int = 0

    def pack(self, site: LatentAttentionSite) -> bool:
        """Put the rows of a site into one tensor ``[B, 1, T, C + R]``, or into two of its halves.

        Says whether it did.
        """
        if self.even and not _has_halves(site):
            site.cache = None
            return False
        if site.cache is not None and len(site.cache.past) == 1 and not self._is_to_grow(site):
            if self.buffers or self._is_free(site):
                self.found += site.cache.own
            else:  # a buffer has rows behind those of the past
                site.cache = None
            return False
        if not site.held or not self._is_free(site):
            site.cache = None
            return False
        held = site.held
        run = None if self.buffers else run_of(site)
        if run is not None:
            let_it_grow(site)
        if held not in self.done:
            self.done[held] = pack(self.graph, site, run, even=self.even)
            self.taken.update((tensor.joined, held) for tensor in held)
        packed = self.done[held]
        site.cache, site.held = packed.cache, packed.held
        _use_rows(site, packed.parts)
        return True

    def _is_to_grow(self, site: LatentAttentionSite) -> bool:
        """Whether the rows are in a buffer that becomes one of ``past_len`` rows."""
        return not self.buffers and run_of(site) is not None

    def _is_free(self, site: LatentAttentionSite) -> bool:
        """Whether nothing but this attention, and those with the same rows, needs the tensors."""
        for tensor in site.held:
            if tensor.positions is not None and not (self.buffers or run_of(site)):
                site.not_held = (
                    f"{tensor.past.name!r} is a buffer already, which the model writes at places of"
                    " its own"
                )
                return False
            if self.graph.is_changed(tensor.past):
                site.not_held = f"the program changes {tensor.past.name!r} in place"
                return False
            if tensor.others is not None:
                readers = ", ".join(self.graph.label(node) for node in tensor.others)
                does = f"read by {readers}" if readers else "returned as it came"
                site.not_held = f"cache input {tensor.past.name!r} is {does}"
                return False
            if self.taken.get(tensor.joined, site.held) != site.held:
                site.not_held = (
                    f"another attention reads part of {tensor.past.name!r} with other rows"
                )
                return False
        return True

    def notes(self) -> tuple[str, ...]:
        """What the report says of caches that are as they should be."""
        if not self.found:
            return ()
        caches = "1 cache is" if self.found == 1 else f"{self.found} caches are"
        return (f"{caches} packed already",)


def _has_halves(site: LatentAttentionSite) -> bool:
    """Whether the rows of a site can be cut in the middle, and the model has two tensors for them.

    Where it has no cache that is known there is a reason already.
    """
    if not site.held:
        return True
    width = sum(widths(site))
    if width % 2:
        site.not_held = f"a row has {width} numbers (C + R), which is odd: there are no two halves"
    elif len(site.held) != 2:
        names = ", ".join(repr(tensor.past.name) for tensor in site.held)
        site.not_held = f"its halves need two tensors, and it is in {len(site.held)} ({names})"
    else:
        return True
    return False
