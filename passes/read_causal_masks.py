"""Take the masks of latent attentions for what they are: causal over the tokens of a sequence.

Before:   scores + mask [B,1,S,T], made of ranges, comparisons and the attention mask
After:    scores, causal; nothing of the attention reads a mask

With the tokens of all sequences packed there is no padding to mask, and the operator knows where
each sequence begins; what is left of a mask is that no query sees a key behind its own. That is
shown of each mask, at all sizes (:mod:`mla_opt.graphs.onnx.packing.masks`). One that does more, a
window or a bias, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

from mla_opt.errors import MASK_NOT_CAUSAL, Refusal
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.masks.causal import why_not_causal
from mla_opt.graphs.protocol import Graph
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite


@dataclass(frozen=True)
class ReadCausalMasks(Pass):
    """Drop the masks of every site, and call it causal. For ONNX graphs."""

    name: ClassVar[str] = "read_causal_masks"

    def run(self, graph: Graph) -> PassResult:
        """Look at the masks of all sites, then drop them."""
        reasons = {
            site.name: why_not_causal(cast(OnnxGraph, graph), site.core) for site in graph.sites
        }
        refused = [site for site in graph.sites if reasons[site.name]]
        for site in graph.sites:
            site.core = replace(site.core, bias=(), causal=True)
        refusals = tuple(_refusal(site, reasons[site.name], graph) for site in refused)
        return PassResult(len(graph.sites), len(graph.sites), refusals)


def _refusal(site: LatentAttentionSite, reason: str, graph: Graph) -> Refusal:
    return Refusal(
        site.name,
        MASK_NOT_CAUSAL,
        f"PagedAttention masks by itself, each query from the keys behind it; here {reason}",
        nodes=(graph.label(site.core.first),),
        remedy="export the model with the usual causal mask, made in the model, and an attention"
        " mask of one number for each token; or use another target",
    )
