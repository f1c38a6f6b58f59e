"""Latent rows, as the graph has them."""

from __future__ import annotations

import pytest

from mla_opt.sites import LatentRows
from mla_opt.sites.layout import Part


@pytest.mark.parametrize(("sizes", "width"), [((64,), 64), ((2, 32), 64), ((0,), 0), ((), 1)])
def test_the_width_of_rows(sizes: tuple[int, ...], width: int) -> None:
    """A layer without a rotary part has rows of no numbers."""
    parts = tuple(Part("width", size, place) for place, size in enumerate(sizes))
    layout = ((Part("batch", None, 0),), (Part("key", None, 0),), parts)
    assert LatentRows("rows", layout).width == width
