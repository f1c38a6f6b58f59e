"""The attention cores of a graph: softmax between two matrix products, or one fused node.

    scores = scale * query @ key^T (+ bias ...)       bias: additive, boolean, or both
    output = softmax(scores [| sink]) @ value

A core is read outward from its softmax: backward to the product of query and key, forward to the
product with the values. Guards that exporters put around the softmax (casts, NaN to zero, the
maximum subtracted) change nothing of this and are part of the core.

The axes of the scores are carried along (:mod:`mla_opt.matching.axes`): what lies between a product
and the softmax may group and permute sequences, heads and tokens, and must keep each what it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.matching.core_axes import ReadCore
from mla_opt.matching.fused_core import fused_core
from mla_opt.matching.normalised import normalised
from mla_opt.matching.softmax_core import softmax_core


def attention_cores(graph: Graph) -> Iterator[ReadCore]:
    """Yield every attention of the main graph, in graph order."""
    for node in graph.nodes():
        operation = graph.operation(node)
        if isinstance(operation, op.FusedAttention):
            yield fused_core(graph, node, operation)
            continue
        softmax = normalised(graph, node)
        core = None if softmax is None else softmax_core(graph, softmax)
        if core is not None:
            yield core
