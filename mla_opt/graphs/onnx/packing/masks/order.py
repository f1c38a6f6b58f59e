"""Comparing two integers of one query and one key, whatever the sizes are.

A query is the token ``s`` of the ``S`` new ones of a sequence, behind ``P`` of its past; a key is
the token ``t`` of all ``P + S``. A *case* says which of both comes first, and writes every symbol
as a sum of others that are free to be any count:

    not after    t = P + s - u    P + s = t + u,      S = s + 1 + v
    after        t = P + s + 1 + u,                   S = s + 2 + u + v

So a difference whose coefficients are all positive, or all negative, has that sign in every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sympy

from mla_opt.graphs import sizes
from mla_opt.graphs.sizes import Expression

When = Literal["not after", "after"]

QUERY, KEY, NEW, PAST = (sizes.symbol(name) for name in ("s of mask", "t of mask", "S", "P"))
"""The places of the query and of the key, and how many new and past tokens there are."""

_U, _V = sizes.symbol("u of mask"), sizes.symbol("v of mask")

_CASES: dict[When, Mapping[Expression, Expression]] = {
    "not after": {PAST: KEY + _U - QUERY, NEW: QUERY + 1 + _V},
    "after": {KEY: PAST + QUERY + 1 + _U, NEW: QUERY + 2 + _U + _V},
}


@dataclass(frozen=True, slots=True)
class Case:
    """Keys that are ``not after`` a query, or ``after`` it."""

    when: When

    def is_at_least(self, left: Expression, right: Expression) -> bool | None:
        """Whether ``left >= right`` in every call of this case; ``None`` where calls differ."""
        if isinstance(left, int | float) and isinstance(right, int | float):
            return bool(left >= right)
        rest = sympy.expand(sympy.sympify(left - right).subs(_CASES[self.when], simultaneous=True))
        terms = list(rest.as_coefficients_dict().items())
        if not all(_is_count(term) and factor.is_Integer for term, factor in terms):
            return None
        if all(factor >= 0 for _, factor in terms):
            return True
        constant = next((factor for term, factor in terms if term == 1), 0)
        falls = all(factor <= 0 for term, factor in terms if term != 1)
        return False if falls and constant < 0 else None

    def is_equal(self, left: Expression, right: Expression) -> bool | None:
        """Whether both are the same number in every call of this case."""
        above, below = self.is_at_least(left, right), self.is_at_least(right, left)
        if above and below:
            return True
        return False if above is False or below is False else None


def _is_count(term: Expression) -> bool:
    """Whether a term is a product of counts."""
    return bool(term.is_nonnegative)
