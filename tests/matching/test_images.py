"""Rows of a matrix by head, as labels tell them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mla_opt.matching.extraction import _rope_dims
from mla_opt.matching.images import NOTHING, Images, Picks
from mla_opt.matching.not_latent import NotLatentError

MATRIX = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def picks(source, factor=1.0) -> Picks:
    source = np.asarray(source)
    return Picks(source, np.broadcast_to(np.asarray(factor, np.float64), source.shape))


def test_rows_that_follow_each_other_are_a_view():
    made = picks([[2, 3, 4], [5, 6, 7]]).of(MATRIX)
    assert np.shares_memory(made, MATRIX)
    assert np.array_equal(made, MATRIX[2:8].reshape(2, 3, 4))


@pytest.mark.parametrize(
    "source",
    [[[2, 3], [6, 7]], [[3, 2], [1, 0]], [[NOTHING, 0], [1, 2]], [[0, 1], [2, NOTHING]], [[1, 1]]],
    ids=str,
)
def test_other_rows_are_picked(source):
    made = picks(source).of(MATRIX)
    assert not np.shares_memory(made, MATRIX)
    for head, rows in enumerate(source):
        for dim, row in enumerate(rows):
            wanted = np.zeros(4) if row == NOTHING else MATRIX[row]
            assert np.array_equal(made[head, dim], wanted)


def test_factors_are_those_of_their_dims():
    made = picks([[0, 1], [2, 3]], [[1.0, 2.0], [0.5, -1.0]]).of(MATRIX)
    wanted = MATRIX[:4].reshape(2, 2, 4) * np.array([[1.0, 2.0], [0.5, -1.0]])[..., None]
    assert made.dtype == MATRIX.dtype
    assert np.array_equal(made, wanted.astype(np.float32))


def test_a_factor_that_is_taken_out_leaves_the_numbers_as_they_are():
    """Multiplied and divided again they would be rounded twice."""
    scaled = picks([[0, 1], [2, 3]], 0.1)
    assert np.array_equal(scaled.over(0.1).of(MATRIX), MATRIX[:4].reshape(2, 2, 4))


def test_a_factor_of_nothing_does_not_count():
    made = picks([[0, NOTHING]], [[1.0, 7.0]]).of(MATRIX)
    assert np.array_equal(made, [[MATRIX[0], np.zeros(4)]])


def test_keys_come_before_values_head_by_head():
    keys, values = picks([[0, 1], [5, 6]]), picks([[2, 3, 4], [7, 8, 9]])
    made = keys.before(values).of(MATRIX)
    assert np.shares_memory(made, MATRIX)
    assert np.array_equal(made, MATRIX.reshape(2, 5, 4))


def test_whether_rows_hold_anything():
    matrix = MATRIX.copy()
    matrix[3] = 0
    assert not picks([[NOTHING, 3]]).any_in(matrix)
    assert picks([[NOTHING, 3], [4, 3]]).any_in(matrix)
    assert not picks([[NOTHING]]).any_in(matrix)


#: Three heads of six dims, the last two of which hold ``k_pe``, in the other order.
ROPE = np.zeros((3, 6, 2))
ROPE[:, 4, 1] = ROPE[:, 5, 0] = 0.5
KEYS = picks([[0, 1, 2, 3, NOTHING, NOTHING]] * 3)


def changed(place, number):
    made = ROPE.copy()
    made[place] = number
    return made


def images(rope, keys=KEYS):
    nothing = np.zeros((3, 6))
    return Images(
        MATRIX, keys, picks([[0]] * 3), rope, np.zeros((3, 1, 2)), nothing, nothing[:, :1]
    )


SITE = SimpleNamespace(core=SimpleNamespace(first=None))


def test_k_pe_is_found_with_its_factor():
    assert _rope_dims(SITE, images(ROPE)) == ((5, 4), 0.5)
    assert _rope_dims(SITE, images(np.zeros((3, 6, 0)))) == ((), 1.0)


@pytest.mark.parametrize(
    "rope",
    [
        changed((2, 0, 0), 0.5),
        changed((0, 0, 1), 1e-3),
        changed((1, 5, 0), 0.25),
        changed((1, 5, 0), 0.0),
        changed((slice(None), slice(None), 1), ROPE[:, :, 0]),
        np.zeros_like(ROPE),
    ],
    ids=["twice", "twice in the first", "another factor", "not in one head", "same dim", "nowhere"],
)
def test_k_pe_that_heads_do_not_hold_as_it_is(rope):
    with pytest.raises(NotLatentError) as error:
        _rope_dims(SITE, images(rope))
    assert error.value.code == "rope_mixed"


def test_dims_of_k_pe_hold_nothing_else():
    with pytest.raises(NotLatentError):
        _rope_dims(SITE, images(ROPE, picks([[0, 1, 2, 3, 6, NOTHING]] * 3)))
