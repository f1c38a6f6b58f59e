"""Why an attention is not latent, or not provably so: codes, reasons, and what would change it."""

from __future__ import annotations

from mla_opt.errors import Refusal
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node

_BY_DESIGN = "nothing, if the model means it: it is another kind of attention"


REMEDIES = {
    "unsupported_attention": "export the attention as separate operators",
    "latent_per_head": "a latent for all heads, or for each of a few groups of heads",
    "cache_of_one_half": "cache both keys and values, or the latent rows",
    "cache_axes": "give the sequences and the tokens of the cache an axis each",
    "cache_positions": "write keys and values to the places that one tensor of positions tells",
    "buffer_bias": "take the bias out of the projection, or let caches grow with the tokens",
    "cache_not_returned": "return the joined cache as an output",
    "cache_read_twice": "let the attention alone read the cache",
    "latent_not_narrower": _BY_DESIGN,
    "query_from_latent": _BY_DESIGN,
    "no_shared_projection": "a latent row that both keys and values are made of",
    "tokens_apart": "keep every token in its place, for any number of them",
    "head_count": "export the model with a fixed number of heads",
    "rope_in_values": _BY_DESIGN,
    "separate_projections": _BY_DESIGN,
    "not_linear": _BY_DESIGN,
    "sink_with_key_bias": "take the bias out of the projection of the keys",
    "sink_with_value_bias": "add the bias of the values to the bias of the output projection",
    "rows_flattened": "give sequences and tokens an axis each, up to the layer that makes keys",
    "rope_mixed": "let every head hold the whole rotary row, in the same dims, or give each"
    " attention rows of its own",
    "unknown_shape": "run shape inference on the model, or export it with shapes",
}
"""What would change a refusal, by code, where the place that refuses says nothing better."""


class NotLatentError(Exception):
    """Carries why an attention is not latent, or not provably so."""

    def __init__(
        self, code: str, reason: str, nodes: tuple[Node, ...] = (), remedy: str = ""
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.nodes = code, reason, nodes
        self.remedy = remedy or REMEDIES.get(code, "")

    def refusal(self, graph: Graph, site: str) -> Refusal:
        """The refusal to report, with the nodes named."""
        labels = tuple(graph.label(node) for node in self.nodes)
        return Refusal(site, self.code, self.reason, labels, self.remedy)
