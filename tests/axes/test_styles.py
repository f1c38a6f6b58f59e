"""Every way of writing latent attention that is known is found, rewritten and equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.axes.harness import SIZES, Size, equal_or_refused
from tests.axes.plan import Plan, settled
from tests.axes.styles import OTHERS, PUBLISHED
from tests.axes.writer import build

SOME = SIZES[1:-3:3]


def named(plans: dict[str, Plan]) -> list[Any]:
    return [pytest.param(name, plan, id=name) for name, plan in plans.items()]


@pytest.mark.parametrize(("name", "plan"), named(PUBLISHED))
def test_published_code_is_rewritten_and_equal(name: str, plan: Plan) -> None:
    held(name, plan, SIZES)


@pytest.mark.parametrize(("name", "plan"), named(OTHERS))
def test_ways_of_writing_are_rewritten_and_equal(name: str, plan: Plan) -> None:
    held(name, plan, SOME)


REAL = {
    "key two_products": Plan(key="two_products", scale_on="products"),
    "absorbed two_products": Plan(absorbed="two_products", product="einsum"),
    "mask before the scale": Plan(mask="boolean", mask_at="unscaled", exponential="by_hand"),
    "multi_head": Plan(product="multi_head", cache="expanded"),
    "own cache": PUBLISHED["mobius"],
    **{name: PUBLISHED[name] for name in ("deepseek naive", "deepseek absorb", "qualcomm")},
    "prompt": PUBLISHED["deepseek absorb prompt"],
    "buffers turned": Plan(cache="static_expanded", cache_axes="turned", put="elements_each"),
    "expanded flat": Plan(cache="expanded", cache_axes="flat"),
    "joint, tokens first": Plan(cache="joint", cache_axes="first"),
    "buffers of an operator": OTHERS["product group_query"],
    "own cache, causal": OTHERS["causal by flag, attention3"],
    "own cache of ONNX Runtime, causal": OTHERS["causal by flag, multi_head"],
    "groups of one row": OTHERS["groups joint"],
    "groups of an axis": OTHERS["groups of an axis, cached"],
    "groups apart": OTHERS["groups apart, expanded cache"],
}
"""One of each form, at the widths of released models."""


@pytest.mark.parametrize(("name", "plan"), named(REAL))
def test_the_widths_of_released_models(name: str, plan: Plan) -> None:
    held(name, settled(replace(plan, size="real")), (*SOME[:2], Size(2, 1, 7, "random")))


def held(name: str, plan: Plan, sizes) -> None:
    found = equal_or_refused(build(plan), sizes=sizes)
    layers = 2 if settled(plan).layers == "two" else 1
    assert (found.status, found.matched) == ("equal", layers), found
