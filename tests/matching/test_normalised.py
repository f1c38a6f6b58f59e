"""Which products of exponentials and values may be divided by the sums of the exponentials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mla_opt.graphs.operations import Contraction, MatMul
from mla_opt.matching.normalised import _keeps_rows

ROWS, VALUES = tuple("bhst"), tuple("bhtv")
PRODUCT = MatMul("exponentials", "values", Contraction(ROWS, VALUES, tuple("bhsv")))

OTHERS = {
    "rows turned": replace(PRODUCT, axes=Contraction(ROWS, VALUES, tuple("bshv"))),
    "width in front": replace(PRODUCT, axes=Contraction(ROWS, VALUES, tuple("vbhs"))),
    "nothing summed": replace(PRODUCT, axes=Contraction(ROWS, VALUES, tuple("bhst"))),
    "a factor": replace(PRODUCT, factor=2.0),
    "an addend": replace(PRODUCT, addend="bias"),
    "axes not known": replace(PRODUCT, axes=None),
}


def test_a_product_of_rows_with_matrices() -> None:
    assert _keeps_rows(PRODUCT)


@pytest.mark.parametrize("product", OTHERS.values(), ids=OTHERS)
def test_other_products(product: MatMul) -> None:
    assert not _keeps_rows(product)
