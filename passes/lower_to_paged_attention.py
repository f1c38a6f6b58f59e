"""Pack the tokens of all sequences, and attend by ONNX Runtime's operator for caches in blocks.

Before:   input_ids [B,S], attention mask, past [B,1,P,C+R] --> LatentAttention --> [B,S,...]
After:    input_ids [1,T], blocks, whose block is whose -----> PagedAttention ----> [1,T,...]

T counts the new tokens of all sequences, which come one sequence behind the other and without
padding. Four inputs, the same for all layers, say which are whose and where their rows go
(:mod:`mla_opt.operator.paged_attention`); each cache is one tensor of blocks, which the operator
writes in place. Embeddings, positions and logits are those of single tokens, as they were. That
nothing else brings tokens together is shown node by node
(:mod:`mla_opt.graphs.onnx.packing.tokens`), or the model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import onnx_ir as ir

from mla_opt.emission.paged import PagedBuilder, Pages, emit_paged
from mla_opt.errors import NOT_PACKABLE, TOKENS_MIXED, PassError, Refusal
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.interface import (
    drop_unread,
    pack_interface,
    why_not_packable,
)
from mla_opt.graphs.onnx.packing.tokens.mixing import first_mixing
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.operator.paged_attention import (
    BLOCK_SIZE,
    CALL,
    CALL_SHAPES,
    MULTIPLE_OF,
    NUM_BLOCKS,
    NUM_TOKENS,
    TYPES,
)
from mla_opt.passes.fuse_cache_append import adopt, anchor
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite

CacheType = Literal["keep", "float16", "bfloat16", "int8", "fp8"]

SCALE = "_scale"
"""What is added to the name of a cache of codes to name the input with their scales."""

_CODES = {"int8": "int8", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True)
class LowerToPagedAttention(Pass):
    """Lower every site, and give the model packed tokens. For ONNX graphs.

    ``cache_type`` is what rows are kept in: of a float32 model 16 bits, in which the operator
    computes then, too; of a model of 16 bits its own type, or codes of 8 bits with scales.
    """

    name: ClassVar[str] = "lower_to_paged_attention"
    cache_type: CacheType = "keep"

    def requires(self, graph: Graph) -> None:
        """Every mask is read already."""
        if any(site.core.bias or not site.core.causal for site in graph.sites):
            raise PassError("a site has a mask; run read_causal_masks first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order, then the inputs; or refuse, and rewrite nothing."""
        packing = _Packing(graph, self.cache_type)
        refusals = tuple(packing.refusals()) if graph.sites else ()
        if refusals or not graph.sites:
            return PassResult(len(graph.sites), 0, refusals)
        packing.rewrite()
        mixed = packing.mixed()
        return PassResult(len(graph.sites), len(graph.sites), (mixed,) if mixed else ())


class _Packing:
    """One model on its way to packed tokens."""

    def __init__(self, graph: Graph, cache_type: CacheType) -> None:
        self._graph, self._onnx = graph, cast(OnnxGraph, graph)
        self._cache_type = cache_type

    # What cannot be had

    def refusals(self) -> Iterator[Refusal]:
        """Why the model cannot be lowered, as far as its sites and inputs tell."""
        for site in self._graph.sites:
            reason, remedy = self._obstacle(site)
            if reason:
                yield Refusal(site.name, NOT_PACKABLE, reason, remedy=remedy)
        reason = why_not_packable(self._onnx.interface)
        if reason:
            yield Refusal(self._graph.sites[0].name, NOT_PACKABLE, reason, remedy=_OF_INPUTS)

    def _obstacle(self, site: LatentAttentionSite) -> tuple[str, str]:
        """Why one attention cannot be lowered, and what would change it; empty if it can."""
        assert site.geometry is not None
        width = site.geometry.latent_width
        if site.cache is None or not site.fused or site.cache.layout != "packed":
            why = "it has none" if site.only_new_rows else site.not_held
            return f"PagedAttention needs a cache of latent rows that grows: {why}", _OF_CACHE
        rows = self._graph.declared_shape(site.cache.past[0])[2]
        if isinstance(rows, int):
            return f"its cache takes a past of {rows} tokens, and no other", _OF_CACHE
        if site.core.sink is not None:
            return "PagedAttention has no sinks for latent rows", _ANOTHER
        if width % MULTIPLE_OF:
            return f"PagedAttention takes rows of a multiple of 8 numbers, not {width}", _ANOTHER
        return self._of_type(self._kind(site))

    def _of_type(self, kind: str) -> tuple[str, str]:
        if kind == "float32" and self._cache_type not in TYPES:
            asked = "" if self._cache_type == "keep" else f", so no {self._cache_type} can be had"
            return (
                f"PagedAttention computes in 16 bits, and the model in float32{asked}",
                _OF_TYPE,
            )
        if kind in TYPES and self._cache_type not in ("keep", kind, *_CODES):
            return f"the model is {kind}, and so are its rows, not {self._cache_type}", _KEEP
        if kind not in (*TYPES, "float32"):
            return f"PagedAttention computes in 16 bits, and the model in {kind}", _ANOTHER
        return "", ""

    def _kind(self, site: LatentAttentionSite) -> str:
        assert site.operands is not None
        return self._graph.dtype(site.operands.query_nope).name

    # Rewriting

    def rewrite(self) -> None:
        """Emit every site anew, then take packed tokens."""
        call = {name: self._graph.add_input(name, "int32", CALL_SHAPES[name]) for name in CALL}
        for site in self._graph.sites:
            self._lower(site, call)
        self._graph.prune()
        caches = {value for site in self._graph.sites if site.cache for value in site.cache.joined}
        pack_interface(self._onnx, cast("set[ir.Value]", caches))
        self._graph.prune()

    def _lower(self, site: LatentAttentionSite, call: Mapping[str, Value]) -> None:
        cache, around = site.cache, self._kind(site)
        assert cache is not None and site.operands is not None
        dtype = around if around in TYPES else self._cache_type
        if site.appends:
            self._take_blocks(site, cache, dtype)
        # where another has written the rows already, they are written again
        blocks = cache.past[0] if site.appends else cache.joined[0]
        pages = Pages(blocks, call, dtype, around, cache.scale)
        builder = self._graph.builder(anchor(self._graph, site), f"{site.name}/mla")
        emitted = emit_paged(cast(PagedBuilder, builder), site, site.operands, cache.new[0], pages)
        adopt(self._graph, site, emitted.values() if site.appends else (emitted.output,))
        if site.appends:
            shape = self._graph.declared_shape(cache.past[0])
            self._onnx.declare_shape(cast(ir.Value, cache.joined[0]), shape)

    def _take_blocks(self, site: LatentAttentionSite, cache: CacheSlots, dtype: str) -> None:
        """Blocks in the place of a cache that grows, and scales of their codes."""
        assert site.geometry is not None
        (old,), width = cache.past, site.geometry.latent_width
        element, name = _CODES.get(self._cache_type, dtype), old.name or ""
        # There is one sequence. Who counts the past counts blocks, and is found with the tokens.
        for value in (old, cache.joined[0]):
            for reader in tuple(self._graph.shape_readers(value)):
                self._graph.replace_shape(reader, [1, 1, ((old, 2),), width])
        shape = (NUM_BLOCKS, BLOCK_SIZE, 1, width)
        kind = element.replace("_", "")
        cache.past = (self._graph.replace_input(old, name, shape, kind, moved={2: 1}),)
        if element != dtype:
            cache.scale = self._graph.add_input(f"{name}{SCALE}", "float32", (1, 1, width))
            cache.row_bytes = width
        cache.kept_as = element if element != self._kind(site) else None
        cache.layout, cache.own = "paged", False

    def mixed(self) -> Refusal | None:
        """What brings tokens together; ``None`` if nothing does."""
        first = self._graph.sites[0].name
        read = drop_unread(self._onnx)
        if read:
            told = f"input {read!r}, which tells of whole sequences, is read outside of masks"
            return _mixed(first, told)
        packed = OnnxGraph(self._onnx.model)
        node, reason = first_mixing(packed, NUM_TOKENS)
        if not reason:
            return None
        if node is None:
            return _mixed(first, reason)
        label = packed.label(node)
        return _mixed(first, f"{label}: {reason}", (label,))


def _mixed(site: str, reason: str, nodes: tuple[str, ...] = ()) -> Refusal:
    told = f"the tokens of all sequences cannot be packed; {reason}"
    return Refusal(site, TOKENS_MIXED, told, nodes, _OF_TOKENS)


_ANOTHER = "use another target"
_KEEP = "leave the cache type out"
_OF_CACHE = "export the model with a cache that grows, as inputs and outputs"
_OF_INPUTS = "export the model with inputs of [sequences, tokens], of any size"
_OF_TYPE = (
    "ask for cache type float16 or bfloat16, which rounds queries and rows in front of the"
    " operator; or export the model in 16 bits"
)
_OF_TOKENS = (
    "give the model positions of each token as an input, let it return all tokens, and export"
    " experts token by token (batched_mm); or use another target"
)
