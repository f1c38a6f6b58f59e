"""Labels of products: what einsum and tensordot mean for every operand."""

from __future__ import annotations

import numpy as np
import pytest

from mla_opt.graphs import contractions


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("bsd,btd->bst", (3, 3), ("bsd", "btd", "bst")),
        (" sd , td ", (2, 2), ("sd", "td", "st")),
        ("...sd,...td->...st", (4, 4), (".1 .0 s d", ".1 .0 t d", ".1 .0 s t")),
        ("...sd,td->...st", (3, 2), (".0 s d", "t d", ".0 s t")),
        ("s...,t...", (2, 3), ("s .0", "t .1 .0", ".1 .0 s t")),
        ("...d,...d->d", (1, 1), ("d", "d", "d")),
    ],
)
def test_labels_of_an_einsum(equation, ranks, expected) -> None:
    found = contractions.einsum(equation, ranks)
    assert found is not None
    told = (found.first, found.second, found.result)
    assert told == tuple(tuple(each.split()) if " " in each else tuple(each) for each in expected)


@pytest.mark.parametrize(
    ("equation", "ranks"),
    [
        ("bb,bc->c", (2, 2)),
        ("ab,bc->aa", (2, 2)),
        ("ab,bc,cd->ad", (2, 2, 2)),
        ("...ab,bc->...ac", (None, 2)),
        ("...abc,cd->...ad", (2, 2)),
        ("", (2, 2)),
    ],
)
def test_what_is_no_product_of_two(equation, ranks) -> None:
    assert contractions.einsum(equation, ranks) is None


def test_a_tensordot_is_an_einsum() -> None:
    axes = contractions.tensordot((3, 4), ((2, 0), (1, 3)))
    letters = {label: chr(97 + at) for at, label in enumerate({*axes.first, *axes.second})}
    first, second, result = (
        "".join(map(letters.__getitem__, each)) for each in (axes.first, axes.second, axes.result)
    )
    one, other = np.arange(24.0).reshape(2, 3, 4), np.arange(120.0).reshape(5, 4, 3, 2)
    expected = np.tensordot(one, other, axes=((2, 0), (1, 3)))
    assert np.array_equal(np.einsum(f"{first},{second}->{result}", one, other), expected)
