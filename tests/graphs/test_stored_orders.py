"""Stored numbers that readers take for an order of places, or for factors; and what is none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.column_factors import of_width
from mla_opt.graphs.onnx.gathered import _alike_beside
from mla_opt.graphs.onnx.integers import Entries

ORDER = [2, 0, 1]
OF_EACH = {"same": [ORDER, ORDER], "other for the second": [ORDER, [0, 1, 2]]}


@pytest.mark.parametrize("rows", OF_EACH)
def test_an_order_of_places_is_the_same_along_all_other_axes(rows: str) -> None:
    indices = np.asarray(OF_EACH[rows], object)
    assert _alike_beside(Entries(indices), 1) is (rows == "same")
    assert _alike_beside(Entries(indices.T), 0) is (rows == "same")


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_factors_are_numbers_that_can_be_divided_by(bad: float) -> None:
    good, spoiled = np.asarray([2.0, 4.0], np.float32), np.asarray([2.0, bad], np.float32)
    given = [(ir.tensor(each), divides) for each in (good, spoiled) for divides in (False, True)]
    assert [found.tolist() for found in of_width(given, 2)] == [[2.0, 4.0], [0.5, 0.25]]
    assert not [*of_width(given, 3)]
