"""Find every latent attention of a graph, and say of every other attention why it is none.

    c_kv [B,1,T,C] --- linear --- reshape, split ... --+--> key   --+
    k_pe [B,1,T,R] --- repeated for the heads ---------+            +--> attention
    c_kv --------------------- the same linear -------------> value +

Scores that are a sum of products are written as one product first; where that is no latent
attention, it is taken back. Else nothing is rewritten: the sites are recorded on the graph. Their
cache, where past rows and new rows are joined and returned, is recorded with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mla_opt.emission.drafts import withdraw_unused
from mla_opt.emission.one_product import draft_one_product
from mla_opt.emission.written_out import draft_written_out
from mla_opt.errors import MlaOptError, Refusal
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.attention_core import attention_cores
from mla_opt.matching.core_axes import ReadCore
from mla_opt.matching.fused_core import can_be_written_out
from mla_opt.matching.latent_region import latent_site
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.row_caches import check_same_rows
from mla_opt.matching.summed_products import summed_products
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import (
    AttentionCore,
    CachedTensor,
    CacheLayout,
    CacheSlots,
    Ends,
    LatentAttentionSite,
)
from mla_opt.sites.layout import KEYS, is_standard, parts_of

_MODULE_PATH = re.compile(r"(?:model\.)*(.*?(?:attn|attention)(?:\.\d+)?)\.", re.IGNORECASE)
_NAMED_WITHIN = 40


@dataclass(frozen=True)
class FindLatentAttention(Pass):
    """Record the latent attentions of the graph, all but the sites named in ``exclude``."""

    name: ClassVar[str] = "find_latent_attention"
    exclude: frozenset[str] = frozenset()

    def run(self, graph: Graph) -> PassResult:
        """Fill ``graph.sites``."""
        own = frozenset(graph.nodes())
        _draft(graph)
        refusals: list[Refusal] = []
        names: set[str] = set()
        for number, read in enumerate(_undrafted(graph)):
            core = read.core
            try:
                graph.nearest_binding(*EXAMPLE)  # inputs that contradict each other show here
                site = latent_site(graph, read)
                check_same_rows(graph.sites, site)
                _check_causal(graph, site)
            except (NotLatentError, MlaOptError) as error:
                name = _unique(_site_name(graph, (core.value, core.key), number), names)
                refusals.append(_refusal(graph, name, _of_model(graph, core, error, own)))
                continue
            site.name = _unique(_site_name(graph, (site.latent,), number), names)
            if site.name not in self.exclude:
                site.cache = _latent_cache(graph, site)
                site.original_cache = _cache_names(site)
                site.reordered = _is_reordered(site)
                graph.sites.append(site)
        withdraw_unused(graph)
        refusals += _on_integers(graph, names)
        return PassResult(matched=len(graph.sites), refusals=tuple(refusals))


def _draft(graph: Graph) -> None:
    """Write sums of products as one, and attentions with caches of their own out, for now."""
    try:
        for summed in tuple(summed_products(graph)):
            graph.drafts.append(draft_one_product(graph, summed))
        for node in graph.nodes():
            fused = graph.operation(node)
            if isinstance(fused, op.FusedAttention) and can_be_written_out(graph, fused):
                graph.drafts.append(draft_written_out(graph, node, fused))
    except MlaOptError:
        pass  # a type is not known: what is left is refused for being no single product
    if graph.drafts:
        graph.refresh()


def _undrafted(graph: Graph) -> list[ReadCore]:
    """The attentions of the graph, but for nodes that are written in another way for now."""
    replaced = {graph.producer(old) for draft in graph.drafts for old, _ in draft.replaced}
    return [read for read in attention_cores(graph) if read.core.last not in replaced]


def _of_model(
    graph: Graph, core: AttentionCore, error: NotLatentError | MlaOptError, own: frozenset[Node]
) -> NotLatentError | MlaOptError:
    """The error with nodes that the model has: what a draft stands for, not what it is."""
    if not isinstance(error, NotLatentError) or own.issuperset(error.nodes):
        return error
    drafted = (
        graph.producer(old)
        for draft in graph.drafts
        if draft.first is core.first
        for old, _ in draft.replaced
    )
    nodes = dict.fromkeys(node for node in (*error.nodes, *drafted) if node in own)
    return NotLatentError(error.code, error.reason, tuple(nodes), error.remedy)


def _on_integers(graph: Graph, names: set[str]) -> Iterator[Refusal]:
    """Attentions that are one operator on quantized activations: none can be read."""
    for number, node in enumerate(graph.nodes()):
        operation = graph.operation(node)
        if isinstance(operation, op.Opaque) and operation.attention and operation.rounds:
            yield Refusal(
                _unique(_site_name(graph, graph.operands(node)[:1], number), names),
                "activations_quantized",
                "the whole attention is one operator on quantized activations",
                (graph.label(node),),
                "leave Attention out of what is quantized (op_types_to_quantize)",
            )


def _refusal(graph: Graph, name: str, error: NotLatentError | MlaOptError) -> Refusal:
    if isinstance(error, NotLatentError):
        return error.refusal(graph, name)
    return Refusal(
        name,
        "inputs_not_understood",
        str(error),
        remedy="declare the inputs with one symbol for each size that may vary",
    )


def _check_causal(graph: Graph, site: LatentAttentionSite) -> None:
    """A fused node aligns its causal mask to the first key, the operator to the last."""
    if not site.core.causal:
        return
    if not site.only_new_rows:
        raise NotLatentError(
            "causal_alignment",
            "its causal mask is aligned to the first key, yet there are more keys than queries",
            (site.core.last,),
            "export it with an explicit mask",
        )


def _latent_cache(graph: Graph, site: LatentAttentionSite) -> CacheSlots | None:
    """The model's own cache, if the operator can append to that as it is."""
    held = site.held
    places = [place for tensor in held for place in tensor.places]
    in_order = places == list(range(len(places))) and _is_cut(site, held)
    buffers = any(tensor.positions is not None for tensor in held)
    if (
        not held
        or buffers
        or not in_order
        or not all(_is_operand(graph, tensor) for tensor in held)
    ):
        return None
    past, new, joined = zip(*((each.past, each.new, each.joined) for each in held))
    layout: CacheLayout = "packed" if len(held) == 1 else "split"
    return CacheSlots(layout, past=past, new=new, joined=joined, own=True)


def _is_cut(site: LatentAttentionSite, held: Sequence[CachedTensor]) -> bool:
    """Whether the rows are in one tensor, or in two of which the second has ``k_pe``."""
    latent = sum(part.width for part in site.latents)
    return len(held) == 1 or (len(held) == 2 and len(held[0].places) == latent)


def _is_operand(graph: Graph, tensor: CachedTensor) -> bool:
    """Whether a tensor goes in and out as ``[B, 1, T, X]``, with nothing on the way."""
    node = graph.producer(tensor.joined)
    direct = node is not None and tensor.past in graph.operands(node)
    layouts = (tensor.layout, tensor.past_layout, tensor.output_layout)
    return (
        direct
        and tensor.positions is None
        and tensor.output is tensor.joined
        and all(is_standard(layout, KEYS) for layout in layouts)
    )


def _is_reordered(site: LatentAttentionSite) -> bool:
    """Whether the cached tensors, one beside the other, are no rows ``[c_kv | k_pe]``."""
    places = [place for tensor in site.held for place in tensor.places]
    parts = [part for tensor in site.held for part in parts_of(tensor.past_layout)]
    wide = sum(part.role == "width" for part in parts)
    return places != sorted(places) or wide > len(site.held)


def _cache_names(site: LatentAttentionSite) -> Ends | None:
    """Names of the cache as the model came, for those who feed it."""
    tensors = site.expanded or site.held
    if not tensors:
        return None
    past = tuple(tensor.past.name or "" for tensor in tensors)
    return Ends(past, tuple(tensor.output.name or "" for tensor in tensors))


def _unique(name: str, names: set[str]) -> str:
    chosen, count = name, 1
    while chosen in names:
        count += 1
        chosen = f"{name}#{count}"
    names.add(chosen)
    return chosen


def _site_name(graph: Graph, near: Sequence[Value], number: int) -> str:
    """The module path that a stored tensor near the attention still carries; else a number."""
    for name in _stored_names_upstream(graph, near):
        found = _MODULE_PATH.match(name)
        if found:
            return found.group(1)
    return f"attention.{number}"


def _stored_names_upstream(graph: Graph, values: Sequence[Value]) -> Iterator[str]:
    """Names of stored tensors, the nearest first."""
    pending: list[Value] = list(values)
    seen: set[Value] = set()
    while pending and len(seen) < _NAMED_WITHIN:
        value = pending.pop(0)
        if value in seen:
            continue
        seen.add(value)
        node = graph.producer(value)
        if node is not None:
            pending.extend(graph.operands(node))
        elif (name := graph.stored_name(value)) is not None:
            yield name
