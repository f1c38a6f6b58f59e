"""The attention itself, as the graph has it: what it reads, how it masks, what it makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_opt.handles import Array, Node, Value
from mla_opt.sites.layout import Layout


@dataclass(frozen=True, slots=True)
class BiasTerm:
    """One addend of the scores, or one mask over them.

    ``kind`` is ``additive``; or ``boolean``, true where attending is allowed; or ``blocked``, true
    where it is not. ``layout`` says which axes of ``[B, H, S, T]`` its own are. ``fill`` is what a
    mask puts in the place of a score: where it forbids every key, all of them weigh the same if
    that is a number, and minus infinity leaves none. ``factor`` is what an addend is multiplied by.
    """

    kind: str
    value: Value
    layout: Layout | None = None
    fill: float = float("-inf")
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class CoreLayouts:
    """Where sequences, heads, tokens and width are among the axes of a core's values."""

    query: Layout
    key: Layout
    value: Layout
    output: Layout


@dataclass(frozen=True, slots=True)
class AttentionCore:
    """One attention, from its query to its output, in the ``layouts`` that its graph has.

    ``sink`` is one more logit of each head, stored, or a number that is one of all. ``first`` and
    ``last`` are the nodes that multiply query and key, and that make ``output``.
    """

    query: Value
    key: Value
    value: Value
    output: Value
    scale: float
    first: Node
    last: Node
    bias: tuple[BiasTerm, ...] = ()
    sink: Value | float | None = None
    causal: bool = False
    unsupported: str = ""
    nodes: tuple[Node, ...] = ()
    layouts: CoreLayouts | None = None


def sinks_of_heads(content: Array, heads: int) -> Array:
    """What a core's ``sink`` holds as a vector ``[H]``: a number for each head, or one for all."""
    sinks = content.reshape(-1)
    return np.repeat(sinks, heads) if sinks.size == 1 else sinks
