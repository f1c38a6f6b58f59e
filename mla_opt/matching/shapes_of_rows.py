"""Shapes of rows in an example: those that are known, else those that the roles of axes say.

How many rows a buffer has, or are read of it, may be said by data, which an example does not have.
Any number will do where rows are what is fed: as many as there would be with a cache that grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from mla_opt.graphs.protocol import Binding
from mla_opt.handles import Value
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.sites import CachedTensor
from mla_opt.sites.layout import Layout, Role

_MOST = 1 << 28
"""Numbers that rows may be of: 1 GiB in float32."""


def shape_of_rows(
    binding: Binding, value: Value, layout: Layout, tensors: Iterable[CachedTensor]
) -> tuple[int, ...] | None:
    """The shape of a value whose axes are sequences, tokens, heads and width; ``None``: unknown.

    ``tensors`` are what the rows are read of.

    Raises:
        NotLatentError: at sizes that the inputs fix, these are more rows than can be run.
    """
    known = binding.shape(value)
    if known is None and any(each.positions is not None for each in tensors):
        known = _by_roles(binding, layout)
    if known is not None and math.prod(known) > _MOST:
        raise NotLatentError(
            "region_not_closed",
            f"{value.name} is of more than {_MOST} numbers at sizes that the inputs declare",
            remedy="export the model with free sizes of batches and caches",
        )
    return known


def _by_roles(binding: Binding, layout: Layout) -> tuple[int, ...] | None:
    batch, query, past = binding.sizes
    counted: dict[Role, int] = {"batch": batch, "key": query + past}
    sizes = [
        [counted.get(part.role) if part.size is None else part.size for part in axis]
        for axis in layout
    ]
    if any(size is None for axis in sizes for size in axis):
        return None
    return tuple(math.prod(size or 0 for size in axis) for axis in sizes)
