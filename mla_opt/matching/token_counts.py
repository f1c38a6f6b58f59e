"""Whether keys and values treat all tokens alike, told by counting.

What is made of latent rows token by token has so many numbers for each token, however many there
are. Something that takes the first 64 tokens apart from the rest does not: it has as many numbers
for 65 tokens as for 64. A certificate on a few tokens cannot see that.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from mla_opt.graphs.protocol import EXAMPLE, FAR, Graph
from mla_opt.handles import Value

Sizes = tuple[int, int, int]


def uneven(graph: Graph, values: Iterable[Value]) -> Value | None:
    """The first value that grows in no proportion, or whose growth cannot be told."""
    near, far = (graph.nearest_binding(*sizes) for sizes in (EXAMPLE, FAR))
    for value in values:
        before, after = near.shape(value), far.shape(value)
        if before is None or after is None:
            return value
        if not _in_proportion((prod(before), near.sizes), (prod(after), far.sizes)):
            return value
    return None


def _in_proportion(before: tuple[int, Sizes], after: tuple[int, Sizes]) -> bool:
    """Whether two sizes are of as many numbers for each token, or for each sequence."""
    pairs = zip(_tokens(before[1]), _tokens(after[1]))
    return any(before[0] * far == after[0] * near for near, far in pairs if near and far)


def _tokens(sizes: Sizes) -> tuple[int, ...]:
    """New, past and all tokens of one sequence and of the batch; sequences, of a fixed length."""
    batch, new, past = sizes
    alone = (new, past, new + past)
    return (*alone, *(batch * count for count in alone), batch)
