"""Keep the rows of the latent cache in 8 bits, everything else in float32.

Before:   past [B,1,P,C+R] float32, new --> LatentAttention --> present [B,1,P+S,C+R] float32
After:    codes [B,1,P,C] int8 or float8e4m3fn --+
          k_pe, scales [B,1,P,W] bfloat16 -------+--> LatentAttention --> both, S rows longer
          new -----------------------------------+

The codes have the name that the cache had; ``k_pe`` and the scales are one more input and output.
The operator quantizes new rows, and attends to what their codes stand for
(:mod:`mla_opt.operator.quantized_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.operator.quantized_rows import row_bytes, width_beside
from mla_opt.passes.fuse_cache_append import append_in_operator
from mla_opt.passes.narrow_cache import (
    cached,
    caches_of,
    check_float32,
    check_query,
    check_readers,
    has_another_cache,
    left_alone,
    names_of,
)
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite

CodesType = Literal["keep", "int8", "fp8"]

BESIDE = "_rope_scales"
"""What is added to the name of the codes to name what is beside them."""

_BITS = "8 bits; use a cache type of 16 bits, or keep it"

_ELEMENTS = {"int8": "int8", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """Give every latent cache of one tensor codes of the type ``cache_type``."""

    name: ClassVar[str] = "quantize_cache"
    cache_type: CodesType = "keep"

    def requires(self, graph: Graph) -> None:
        """Every cache is one tensor, handed to the operator; nothing else expands its rows."""
        for site in cached(graph):
            if not site.fused:
                raise PassError(f"{site.name} does not append to its cache; run fuse_cache_append")
            if site.cache is not None and len(site.cache.past) != 1:
                raise PassError(f"{site.name} keeps its cache in two tensors; pack it first")
            fixed = site.prefill == "absorbed" or site.chooses
            if not fixed and self.cache_type != "keep":
                raise PassError(f"{site.name} has an expanded form, which knows no 8-bit rows")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the caches, then the sites that read them, in graph order.

        Raises:
            InputError: rows are kept in something else than float32, or a name is taken.
        """
        if self.cache_type == "keep":
            return PassResult(len(graph.sites))
        sites = cached(graph)
        before = names_of(past for cache in caches_of(sites) for past in cache.past)
        for site in sites:
            check_query(graph, site)
            if site.appends:
                _take_codes(graph, site, _ELEMENTS[self.cache_type])
            append_in_operator(graph, site)
            if site.appends:
                _return_codes(graph, site)
        graph.prune()
        codes = names_of(cache.joined[0] for cache in caches_of(sites))
        check_readers(graph, before | codes, sites, _BITS)
        others = tuple(left_alone(site) for site in graph.sites if has_another_cache(site))
        return PassResult(len(graph.sites), len(sites), others)


def _widths(site: LatentAttentionSite) -> tuple[int, int]:
    """C and R."""
    assert site.geometry is not None
    return site.geometry.kv_lora_rank, site.geometry.qk_rope_head_dim


def _take_codes(graph: Graph, site: LatentAttentionSite, element: str) -> None:
    """Put inputs for codes, and for what is beside them, in the place of the cache's."""
    cache = _cache(site)
    (old,) = cache.past
    check_float32(graph, old, element)
    rank, rope = _widths(site)
    batch, heads, rows, _ = graph.declared_shape(old)
    name = old.name or ""
    beside = graph.add_input(
        f"{name}{BESIDE}", "bfloat16", (batch, heads, rows, width_beside(rank, rope))
    )
    kind = element.replace("_", "")
    codes = graph.replace_input(old, name, (batch, heads, rows, rank), kind)
    _count_beside(graph, codes, beside, rank + rope)
    cache.past = (codes, beside)
    cache.kept_as, cache.own, cache.row_bytes = element, False, row_bytes(rank, rope)


def _return_codes(graph: Graph, site: LatentAttentionSite) -> None:
    """Declare what the outputs hold now, and return what is beside the codes."""
    rank, rope = _widths(site)
    codes, beside = _cache(site).joined
    shape = graph.declared_shape(codes)
    _count_beside(graph, codes, beside, rank + rope)
    graph.declare_width(codes, rank)
    rows = (*shape[:-1], width_beside(rank, rope)) if shape else None
    graph.add_output(beside, f"{codes.name}{BESIDE}", rows)


def _count_beside(graph: Graph, codes: Value, beside: Value, width: int) -> None:
    """Let those who count rows count those beside the codes.

    ONNX Runtime's CPU provider does not tell the shape of floats of 8 bits.
    """
    for reader in tuple(graph.shape_readers(codes)):
        graph.replace_shape(reader, [((beside, 0),), 1, ((beside, 2),), width])


def _cache(site: LatentAttentionSite) -> CacheSlots:
    assert site.cache is not None
    return site.cache
