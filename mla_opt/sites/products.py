"""Scores that are a sum of several products of queries and keys, or scaled by numbers of heads."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Node, Value
from mla_opt.sites.layout import Layout


@dataclass(frozen=True, slots=True)
class HeadScale:
    """A stored number for each head that scores are multiplied by, or divided by."""

    value: Value
    layout: Layout
    divides: bool


@dataclass(frozen=True, slots=True)
class ScoreProduct:
    """``factor * query @ key^T``: a part of every query with one, as wide, of every key.

    ``query_layout`` and ``key_layout`` say where heads, tokens and width are among their axes.
    ``scales`` are stored numbers of the heads.
    """

    query: Value
    query_layout: Layout
    key: Value
    key_layout: Layout
    factor: float
    scales: tuple[HeadScale, ...] = ()


@dataclass(frozen=True, slots=True)
class SummedProducts:
    """``total``, made by ``node`` with axes ``layout``, is the sum of ``products``.

    ``heads`` is how many heads there are.
    """

    products: tuple[ScoreProduct, ...]
    total: Value
    layout: Layout
    node: Node
    heads: int
