"""How far two computations of the same sums are apart when only rounding differs.

Each addition of a sum of ``n`` terms rounds the sum so far, by at most ``u`` of it. Of terms with
random signs the sum so far grows as a square root, and so do roundings that know nothing of each
other; what ``n`` of them add up to is then normally ``sqrt(n / 2) u`` of the size of the result
(N. J. Higham and T. Mary, "Sharper probabilistic backward error analysis for basic linear algebra
kernels with random data", SIAM Journal on Scientific Computing 42, 2020; the square root is that of
their "A new approach to probabilistic rounding error analysis", volume 41, 2019).

What a certificate compares is the largest of many errors with the largest of as many results. Of
``M`` normal numbers the largest is about ``sqrt(2 ln M)``, and beyond ``sqrt(2 ln (2 M / p))`` with
a probability of less than ``p``. The ratio of both is :data:`FACTOR` at ``M = 70``, the fewest
numbers a head has in an example, and ``p = 1e-9``; where there are more it is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
"""Largest relative error of rounding to nearest, by element type."""

FACTOR = 2.5
"""Largest error of many, by the normal size of one, and both relative to what is rounded."""

MOST = 2e-2
"""What no sum excuses, be its type ever so coarse: more may be another computation."""

OPERATORS = 8
"""Operators on the way, at most, that round each number once: scales, biases, casts."""


def coarsest(types: Iterable[str]) -> str:
    """The element type that rounds most; what is no float rounds nothing."""
    known = [kind for kind in types if kind in UNIT_ROUNDOFF]
    return max(known, key=UNIT_ROUNDOFF.__getitem__, default="float32")


def of_sums(kind: str, *lengths: float) -> float:
    """Largest error, relative to the largest result, of sums one after the other; at most `MOST`.

    Args:
        kind: element type that every addition rounds to. Most runtimes sum 16-bit numbers in
            float32, but not all do: this is the least exact.
        lengths: terms of each sum; where its error reaches the result weaker or stronger, times the
            square of that.
    """
    error = FACTOR * UNIT_ROUNDOFF[kind] * math.sqrt(sum(lengths) / 2 + OPERATORS)
    return min(error, MOST)
