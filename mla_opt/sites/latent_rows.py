"""Latent rows, as the graph has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mla_opt.handles import Value
from mla_opt.sites.layout import Layout, parts_of


@dataclass(frozen=True, slots=True)
class LatentRows:
    """``value`` has a row for each token; ``layout`` says where that is among its axes.

    Whatever is neither a sequence nor a token counts as width, a group of heads as well.
    """

    value: Value
    layout: Layout

    @property
    def width(self) -> int:
        """Numbers of a row; none where a layer has no rotary part."""
        sizes = [part.size for part in parts_of(self.layout) if part.role == "width"]
        return math.prod(1 if size is None else size for size in sizes)
