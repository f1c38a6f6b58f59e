"""The least tolerances are what rounding makes of the deepest released model."""

from __future__ import annotations

import math

import pytest

from mla_opt.matching.rounding import FACTOR, UNIT_ROUNDOFF, of_sums
from mla_opt.verification.parity import CEILINGS, FLOORS, ROUNDED_FLOORS

LAYERS, TERMS, OPERATORS = 61, 7168 + 1536 + 192 + 512 + 16384 + 7168 + 18432 + 4096, 28


def test_float32_is_held_to_the_rounding_of_its_sums() -> None:
    assert FLOORS[4] == pytest.approx(of_sums("float32", *[TERMS] * LAYERS), rel=0.1)


def test_16_bits_are_held_to_one_rounding_an_operator() -> None:
    count = math.sqrt(LAYERS * OPERATORS)
    assert FLOORS[2] == pytest.approx(FACTOR * UNIT_ROUNDOFF["float16"] * count, rel=0.1)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_rounded_caches_are_held_to_one_rounding_a_layer(kind: str) -> None:
    once = FACTOR * UNIT_ROUNDOFF[kind] * math.sqrt(LAYERS)
    assert ROUNDED_FLOORS[kind] == pytest.approx(2 * once, rel=0.1)


def test_noise_in_float32_does_not_excuse_a_wrong_head_of_128() -> None:
    assert CEILINGS[4] < 0.2 / math.sqrt(128)
