"""Scores that are multiplied by a stored number of each head, and by what is none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, Outcome, equal_or_refused
from tests.axes.plan import SIZES as WIDTHS
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])


def scaled(plan: Plan, axes: str = "h11", kind: str = "Mul") -> onnx.ModelProto:
    """A model whose scores, before or after the usual scale, are scaled by a stored tensor."""
    model = build(settled(plan))
    sizes = {"h": WIDTHS[plan.size][0] * (2 if plan.repeat == "two" else 1), "1": 1, "s": 5, "t": 5}
    shape = [sizes[axis] for axis in axes]
    numbers = np.random.default_rng(7).uniform(0.3, 2.0, shape).astype(plan.dtype)
    model.graph.initializer.append(numpy_helper.from_array(numbers, "numbers"))
    before_softmax(model, kind)
    return model


def before_softmax(model: onnx.ModelProto, kind: str) -> None:
    """Scale what the first product of queries and keys makes, through all that reads it."""
    product = next(
        each
        for each in model.graph.node
        if each.op_type in ("MatMul", "Einsum", "FusedMatMul")
        and is_of_scores(model, each.output[0])
    )
    (made,) = product.output
    product.output[0] = "unscaled"
    place = list(model.graph.node).index(product) + 1
    model.graph.node.insert(place, helper.make_node(kind, ["unscaled", "numbers"], [made]))


def is_of_scores(model: onnx.ModelProto, value: str) -> bool:
    """Whether a value is on its way to the softmax, and no step is a product."""
    for _ in range(8):
        readers = [each for each in model.graph.node if value in each.input]
        if any(each.op_type == "Softmax" for each in readers):
            return True
        if len(readers) != 1 or readers[0].op_type in ("MatMul", "Einsum"):
            return False
        value = readers[0].output[0]
    return False


def found(model: onnx.ModelProto, word: str = "nothing") -> Outcome:
    return equal_or_refused(model, sizes=SMALL, **ASKED[word])


WRITTEN = {
    "plain": {},
    "einsum": {"product": "einsum"},
    "masks": {"mask": "boolean", "fill": "infinite"},
    "sinks": {"sinks": "some"},
    "two products": {"key": "two_products"},
    "absorbed": {"absorbed": "one_product"},
    "expanded": {"cache": "expanded"},
    "repeated": {"repeat": "two"},
    "float16": {"dtype": "float16"},
    "real": {"size": "real"},
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "Mul") for name in WRITTEN), ("plain", "Div"), ("real", "Div")]
)
def test_a_number_of_each_head(name: str, kind: str) -> None:
    outcome = found(scaled(Plan(**WRITTEN[name]), kind=kind))
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


@pytest.mark.parametrize("word", ["static", "portable", "fold", "expanded"])
def test_what_may_be_asked_for_beside_it(word: str) -> None:
    outcome = found(scaled(Plan()), word)
    assert (outcome.status, outcome.matched) == ("equal", 1), outcome


@pytest.mark.parametrize("axes", ["1s1", "11t", "hs1", "h1t"])
def test_numbers_of_tokens_are_no_scale(axes: str) -> None:
    """They hold for calls of one size only; another token would have another number."""
    outcome = found(scaled(Plan(cache="none", mask="none", positions="shapes"), axes))
    assert outcome.status == "refused", outcome


def test_a_scale_of_what_is_masked_is_refused() -> None:
    """What is added would be scaled, too."""
    model = scaled(Plan())
    node = next(each for each in model.graph.node if "numbers" in each.input)
    (mask,) = (
        each
        for each in model.graph.node
        if each.op_type == "Add" and is_of_scores(model, each.output[0])
    )
    before, (after,) = node.output[0], mask.output
    for each in model.graph.node:
        each.input[:] = ["unscaled" if name == before else name for name in each.input]
    mask.output[0] = "masked"
    model.graph.node.remove(node)
    place = list(model.graph.node).index(mask) + 1
    node.input[0], node.output[0] = "masked", after
    model.graph.node.insert(place, node)
    outcome = found(model)
    assert outcome.status == "refused", outcome
