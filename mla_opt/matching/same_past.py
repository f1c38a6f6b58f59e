"""Whether the caches of several attentions have as many rows of the past in every call.

One number says how many those are for all buffers. Two caches are known to agree where the file
declares one size for both, or where one mask, or two of one size, are over the keys of both: with
other sizes such a call fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.sites import LatentAttentionSite


@dataclass(frozen=True, slots=True)
class _Counts:
    """Sizes that tell how many rows of the past there are: of the caches, and of masks."""

    pasts: tuple[Expression, ...]
    masks: tuple[Expression, ...]

    def agrees(self, other: _Counts) -> bool:
        """Whether one of the sizes is one of the other's."""
        return _meet(self.pasts, other.pasts) or _meet(self.masks, other.masks)


def with_another_past(
    graph: Graph, sites: Sequence[LatentAttentionSite]
) -> tuple[LatentAttentionSite, ...]:
    """The sites of which it is not known that their past is as long as that of the first one."""
    counts = [(site, _counts(graph, site)) for site in sites]
    known = [count for _, count in counts[:1]]
    left = counts[1:]
    while alike := [each for each in left if any(each[1].agrees(other) for other in known)]:
        known += [count for _, count in alike]
        left = [each for each in left if each not in alike]
    return tuple(site for site, _ in left)


def _counts(graph: Graph, site: LatentAttentionSite) -> _Counts:
    return _Counts(tuple(_of_caches(graph, site)), tuple(_of_masks(graph, site)))


def _of_caches(graph: Graph, site: LatentAttentionSite) -> Iterator[Expression]:
    for tensor in site.expanded or site.held:
        shape = graph.sizes(tensor.past)
        for axis, parts in enumerate(tensor.past_layout):
            if shape is not None and any(part.role == "key" for part in parts):
                yield shape[axis]


def _of_masks(graph: Graph, site: LatentAttentionSite) -> Iterator[Expression]:
    for term in site.core.bias:
        shape = graph.sizes(term.value)
        for axis, parts in enumerate(term.layout or ()):
            if shape is not None and any(part.role == "key" for part in parts):
                yield shape[axis]


def _meet(one: Sequence[Expression], other: Sequence[Expression]) -> bool:
    return any(sizes.same(left, right) for left in one for right in other if left != 1)
