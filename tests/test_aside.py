"""Arrays that are kept in a file: the same numbers, and no memory while nobody reads them."""

from __future__ import annotations

import tempfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mla_opt import aside
from mla_opt.aside import Aside
from mla_opt.benchmarking.memory import memory

COUNT = 1 << 20


@pytest.fixture(autouse=True)
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing large may stay in memory."""
    monkeypatch.setattr(aside, "IN_MEMORY", 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.uint8])
def test_numbers_are_the_same(dtype: Any) -> None:
    kept = Aside()
    arrays = [(np.arange(n, n + COUNT) % 251).reshape(2, -1, 8).astype(dtype) for n in (0, 77)]
    made = [kept.keep(array) for array in arrays]
    for array, same in zip(arrays, made):
        assert same is not array
        assert same.dtype == array.dtype
        np.testing.assert_array_equal(same, array)


def test_an_array_in_another_order_is_the_same() -> None:
    array = np.arange(COUNT).reshape(1024, -1).T
    np.testing.assert_array_equal(Aside().keep(array), array)


def test_what_was_read_is_let_go_and_read_again() -> None:
    kept = Aside()
    array = kept.keep(np.ones(64 << 20, np.uint8))
    before = memory("VmRSS")
    assert array.sum() == 64 << 20
    assert memory("VmRSS") > before + 50
    kept.let_go()
    assert memory("VmRSS") < before + 10
    assert array.sum() == 64 << 20
    aside.let_go(array[5:])
    assert memory("VmRSS") < before + 10


def test_letting_go_of_other_arrays_does_nothing() -> None:
    array = np.ones(COUNT)
    aside.let_go(array)
    assert array.sum() == COUNT


def test_small_ones_and_views_of_kept_ones_stay_as_they_are() -> None:
    kept = Aside()
    small = np.ones(10)
    assert kept.keep(small) is small
    view = kept.keep(np.ones((COUNT, 2)))[:, :1]
    assert kept.keep(view) is view


def test_the_first_ones_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "IN_MEMORY", 3 * COUNT)
    kept = Aside()
    first, second = np.ones(2 * COUNT, np.uint8), np.ones(2 * COUNT, np.uint8)
    assert kept.keep(first) is first
    view = first[:COUNT]
    assert kept.keep(view) is view, "counted twice"
    assert kept.keep(second) is not second


def test_a_full_disk_leaves_them_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    array = np.ones(COUNT)
    assert Aside().keep(array) is array
