from __future__ import annotations

import json

import numpy as np
import pytest

from mla_opt.verification.alignment import Pair
from mla_opt.verification.parity import (
    CEILINGS,
    FLOORS,
    NOISE_FACTOR,
    Tolerance,
    measure,
    worst_by_name,
)

TOLERANCE = Tolerance.for_bytes(4, {})
REFERENCE = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32) * 3
EVERYWHERE = np.ones((1, 1, 1), np.bool_)


def pair(candidate, valid=EVERYWHERE, kind="output", reference=REFERENCE):
    return Pair("logits", kind, reference, candidate, valid)


def changed(index, value):
    copy = REFERENCE.copy()
    copy[index] = value
    return copy


def test_equal_tensors_pass():
    result = measure(pair(REFERENCE), TOLERANCE)
    assert result.passed
    assert (result.max_abs, result.argmax_agreement, result.elements) == (0, 1, REFERENCE.size)


def test_error_is_relative_to_the_spread():
    result = measure(pair(changed((0, 0, 0), REFERENCE[0, 0, 0] + 0.3)), TOLERANCE)
    assert result.max_abs == pytest.approx(0.3, rel=1e-5)
    assert result.relative == pytest.approx(0.3 / REFERENCE.std(), rel=1e-4)
    assert not result.passed


def test_the_spread_of_a_constant_is_its_size():
    constant = np.full((1, 4), 8.0, np.float32)
    one = np.ones((1, 1), np.bool_)
    assert measure(pair(constant * 1.25, one, reference=constant), TOLERANCE).relative == 0.25
    assert measure(pair(constant, one, reference=constant * 0), TOLERANCE).relative == 8


def test_padding_is_not_compared():
    valid = np.ones((2, 5, 1), np.bool_)
    valid[1, 0] = False
    assert measure(pair(changed((1, 0), np.nan), valid), TOLERANCE).passed
    assert not measure(pair(changed((1, 1), 50), valid), TOLERANCE).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_the_optimized_only_fails(value):
    result = measure(pair(changed((0, 0, 0), value)), TOLERANCE)
    assert (result.new_nonfinite, result.passed) == (1, False)


def test_what_is_not_finite_in_the_original_is_not_compared():
    reference = changed((0, 0, 0), np.inf)
    result = measure(pair(REFERENCE, reference=reference), TOLERANCE)
    assert (result.passed, result.elements) == (True, REFERENCE.size - 1)


def test_an_original_without_a_finite_value_proves_nothing():
    nothing = np.full_like(REFERENCE, np.nan)
    result = measure(pair(nothing, reference=nothing), TOLERANCE)
    assert not result.passed
    assert "throughout" in result.problem


def test_shapes_must_agree():
    result = measure(pair(REFERENCE[:, :4]), TOLERANCE)
    assert not result.passed
    assert "(2, 5, 7)" in result.problem


def test_integers_must_be_equal():
    integers = np.arange(6).reshape(1, 2, 3)
    assert measure(pair(integers, reference=integers), TOLERANCE).passed
    result = measure(pair(integers + (integers == 4), reference=integers), TOLERANCE)
    assert (result.passed, result.relative) == (False, pytest.approx(1 / 6))


def test_argmax_agreement_counts_valid_rows():
    moved = REFERENCE.copy()
    moved[0, 0] = np.roll(moved[0, 0], 1)
    assert measure(pair(moved), TOLERANCE).argmax_agreement == pytest.approx(0.9)
    valid = np.ones((2, 5, 1), np.bool_)
    valid[0, 0] = False
    assert measure(pair(moved, valid), TOLERANCE).argmax_agreement == 1
    assert measure(pair(moved, kind="state"), TOLERANCE).argmax_agreement is None


def test_an_empty_state_passes():
    empty = np.zeros((2, 1, 5, 0), np.float32)
    valid = np.ones((2, 1, 5, 1), np.bool_)
    assert measure(pair(empty, valid, "state", empty), TOLERANCE).passed


def test_half_precision_has_bytes_enough_for_its_sums():
    large = np.full((1, 3), 6e4, np.float16)
    large[0, 0] = -6e4
    result = measure(pair(large, np.ones((1, 1), np.bool_), reference=large), TOLERANCE)
    assert result.relative == 0


def test_tolerance_follows_the_noise_between_floor_and_ceiling():
    noise = {"quiet": FLOORS[4] / 1e3, "noisy": FLOORS[4], "wild": 1.0}
    tolerance = Tolerance.for_bytes(4, noise)
    assert tolerance.of("quiet") == tolerance.of("unknown") == FLOORS[4]
    assert tolerance.of("noisy") == pytest.approx(NOISE_FACTOR * FLOORS[4])
    assert tolerance.of("wild") == CEILINGS[4]
    assert Tolerance.fixed(0.5, noise).of("wild") == 0.5


def test_the_worst_of_several_is_kept():
    results = [
        measure(pair(changed((0, 0, 0), 9)), TOLERANCE),
        measure(pair(changed((0, 0, 0), np.nan)), TOLERANCE),
        measure(pair(REFERENCE), TOLERANCE),
    ]
    (worst,) = worst_by_name(results)
    assert worst.relative == results[0].relative
    assert worst.new_nonfinite == 1
    assert worst.elements == sum(result.elements for result in results)


def test_json_holds_no_infinity():
    result = measure(pair(changed((0, 0, 0), 9)), Tolerance.fixed(float("inf"), {}))
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert json.loads(text)["tolerance"] is None
    assert json.loads(text)["passed"] is True
