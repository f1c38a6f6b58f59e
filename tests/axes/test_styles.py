"""Every way of writing latent attention that is known is found, rewritten and equal."""

from __future__ import annotations

import pytest

from tests.axes.harness import SIZES, equal_or_refused
from tests.axes.plan import Plan, settled
from tests.axes.styles import OTHERS, PUBLISHED
from tests.axes.writer import build

SOME = SIZES[1:-3:3]


@pytest.mark.parametrize("plan", PUBLISHED.values(), ids=PUBLISHED)
def test_published_code_is_rewritten_and_equal(plan: Plan) -> None:
    held(plan, SIZES)


@pytest.mark.parametrize("plan", OTHERS.values(), ids=OTHERS)
def test_ways_of_writing_are_rewritten_and_equal(plan: Plan) -> None:
    held(plan, SOME)


def held(plan: Plan, sizes) -> None:
    found = equal_or_refused(build(plan), sizes=sizes)
    layers = 2 if settled(plan).layers == "two" else 1
    assert (found.status, found.matched) == ("equal", layers), found
