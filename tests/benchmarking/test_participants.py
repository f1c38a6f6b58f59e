from __future__ import annotations

from types import SimpleNamespace

import pytest

from mla_opt.benchmarking.participants import Variant

PAIR = SimpleNamespace(form=lambda side, query: "expanded" if query >= 171 else "factored")


@pytest.mark.parametrize(
    ("kernel", "query", "form"),
    [
        (False, 1, "factored"),
        (False, 171, "expanded"),
        (True, 1, "factored"),
        (True, 171, None),
    ],
)
def test_the_form_of_a_long_query_is_not_known_with_the_kernel(kernel, query, form):
    """Its library decides by its own rate, so that no share of the machine's can be told."""
    variant = Variant("one", "optimized", "", PAIR, "optimized", threads=2, kernel=kernel)
    assert variant.form(query) == form
