"""Say which latent attentions lose roundings that the model came with, or refuse them.

The latent form has no place for the quantization of activations that lies between the latent rows
and the attention's output: it reads rows and query in floating point. That is told of every site.
With ``keep`` such a site is refused instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.errors import Refusal
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite

CODE = "activations_quantized"
_LOST = "are read in floating point"


@dataclass(frozen=True)
class CheckRoundings(Pass):
    """Tell of the activations that are not quantized any more; ``keep``: refuse those sites."""

    name: ClassVar[str] = "check_roundings"
    keep: bool = False

    def run(self, graph: Graph) -> PassResult:
        """Note it on every site, or drop the site."""
        if not graph.roundings:
            return PassResult()
        refusals, kept = [], []
        for site in graph.sites:
            readers = _readers_inside(graph, site)
            if readers and self.keep:
                refusals.append(_refusal(graph, site, readers))
                continue
            if readers:
                site.notes.append(_note(len(readers)))
            kept.append(site)
        matched, lost = len(graph.sites), sum(_LOST in note for s in kept for note in s.notes)
        graph.sites[:] = kept
        warnings = (_warning(lost),) if lost else ()
        return PassResult(matched=matched, refusals=tuple(refusals), warnings=warnings)


def _readers_inside(graph: Graph, site: LatentAttentionSite) -> list[Node]:
    """The nodes of an attention that read rounded activations."""
    makers = {graph.producer(value) for value in (*site.inner, site.core.output)}
    inside = {*makers, *site.core.nodes, site.core.first, site.core.last}
    readers = (node for each in graph.roundings for node in each.readers)
    return list(dict.fromkeys(node for node in readers if node in inside))


def _places(count: int) -> str:
    return "one place" if count == 1 else f"{count} places"


def _note(count: int) -> str:
    return (
        f"its activations were quantized in {_places(count)}, and are not any more: the latent rows"
        f" and the query {_LOST}"
    )


def _warning(count: int) -> str:
    which = "one attention" if count == 1 else f"{count} attentions"
    return (
        f"the activations inside {which} were quantized, and are not any more; those of the rest of"
        " the model are as they were. --keep-activation-quantization refuses such attentions"
    )


def _refusal(graph: Graph, site: LatentAttentionSite, readers: list[Node]) -> Refusal:
    return Refusal(
        site.name,
        CODE,
        f"its activations are quantized in {_places(len(readers))}, which the latent form would not"
        " keep",
        tuple(graph.label(node) for node in readers),
        "do without --keep-activation-quantization (keep_activation_quantization)",
    )
