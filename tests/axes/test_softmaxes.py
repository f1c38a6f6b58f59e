"""Softmax in other ways than one operator, with sinks anywhere, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, Outcome, equal_or_refused
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])
Change = Callable[[onnx.ModelProto], None]


def found(model: onnx.ModelProto, word: str = "nothing") -> Outcome:
    return equal_or_refused(model, sizes=SMALL, **ASKED[word])


def stored(model: onnx.ModelProto, name: str, *numbers: float, dtype: type = np.int64) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, dtype), name))
    return name


def the(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    (node,) = (each for each in model.graph.node if each.op_type == op_type)
    return node


def instead(model: onnx.ModelProto, node: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes in the place of one; the last makes what that made."""
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    for each in reversed(nodes):
        model.graph.node.insert(place, each)


# Sinks


def with_sinks(**changes: str) -> onnx.ModelProto:
    return build(settled(Plan(**({"sinks": "some"} | changes))))


def joined(model: onnx.ModelProto) -> onnx.NodeProto:
    """What joins the column of sinks to the scores."""
    made = the(model, "Softmax").input[0]
    (node,) = (each for each in model.graph.node if made in each.output)
    return node


def dropped(model: onnx.ModelProto) -> onnx.NodeProto:
    """What leaves it out of the probabilities."""
    made = the(model, "Softmax").output[0]
    (node,) = (each for each in model.graph.node if made in each.input)
    return node


def sinks_first(model: onnx.ModelProto) -> None:
    """The column is in front of the keys."""
    column = joined(model)
    column.input[:] = column.input[::-1]
    drop_first(model)


def drop_first(model: onnx.ModelProto) -> None:
    dropped(model).input[1:3] = [stored(model, "second", 1), stored(model, "to_end", (1 << 63) - 1)]


def padded(model: onnx.ModelProto, front: int, back: int, *fill: str) -> None:
    """Zeros in the place of the column."""
    column = joined(model)
    pads = stored(model, "pads", 0, 0, 0, front, 0, 0, 0, back)
    made = helper.make_node("Pad", [column.input[0], pads, *fill], [column.output[0]])
    instead(model, column, made)


def zeros_first(model: onnx.ModelProto) -> None:
    padded(model, 1, 0)
    drop_first(model)


def zeros_last(model: onnx.ModelProto) -> None:
    padded(model, 0, 1)


SINKS: dict[str, Change] = {
    "first": sinks_first,
    "zeros first": zeros_first,
    "zeros last": zeros_last,
}


@pytest.mark.parametrize("asked", ["nothing", "static", "portable", "expanded"])
@pytest.mark.parametrize("sinks", SINKS)
def test_a_column_of_sinks(sinks: str, asked: str) -> None:
    model = with_sinks(mask="boolean", fill="infinite")
    SINKS[sinks](model)
    outcome = found(model, asked)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


@pytest.mark.parametrize(
    "changes", [{"size": "real"}, {"dtype": "float16"}, {"softmax": "guarded"}]
)
@pytest.mark.parametrize("sinks", SINKS)
def test_columns_of_sinks_in_other_models(sinks: str, changes: dict[str, str]) -> None:
    model = with_sinks(**changes)
    SINKS[sinks](model)
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


def first_sinks_last_dropped(model: onnx.ModelProto) -> None:
    column = joined(model)
    column.input[:] = column.input[::-1]


def last_sinks_first_dropped(model: onnx.ModelProto) -> None:
    drop_first(model)


def zeros_first_last_dropped(model: onnx.ModelProto) -> None:
    padded(model, 1, 0)


def ones_last(model: onnx.ModelProto) -> None:
    padded(model, 0, 1, stored(model, "ones", 1.0, dtype=np.float32))


def zeros_at_both_ends(model: onnx.ModelProto) -> None:
    padded(model, 1, 1)
    dropped(model).input[1:3] = [stored(model, "second", 1), stored(model, "last", -1)]


def probabilities_from_the_third_on(model: onnx.ModelProto) -> None:
    """Two columns of zeros, of which one is left among the probabilities, and no last key."""
    padded(model, 2, 0)
    dropped(model).input[1:3] = [stored(model, "second", 1), stored(model, "last", -1)]


OTHER_SINKS: dict[str, Change] = {
    each.__name__: each
    for each in (
        first_sinks_last_dropped,
        last_sinks_first_dropped,
        zeros_first_last_dropped,
        ones_last,
        zeros_at_both_ends,
        probabilities_from_the_third_on,
    )
}


@pytest.mark.parametrize("name", OTHER_SINKS)
def test_columns_that_are_no_sinks_are_refused(name: str) -> None:
    model = with_sinks()
    OTHER_SINKS[name](model)
    outcome = found(model)
    assert outcome.status == "refused", outcome


# By way of the logarithm of the sum


def reduced(model: onnx.ModelProto, kind: str, value: str, made: str, axis: int) -> onnx.NodeProto:
    stored(model, f"axis_of_{made}", axis)
    return helper.make_node(kind, [value, f"axis_of_{made}"], [made], keepdims=1)


def with_logarithm(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """``exp(x - total)`` for the softmax, ``total`` being what the last of the nodes makes."""
    softmax = the(model, "Softmax")
    less = helper.make_node("Sub", [softmax.input[0], "total"], ["less"])
    instead(model, softmax, *nodes, less, helper.make_node("Exp", ["less"], softmax.output))


def at_once(model: onnx.ModelProto, axis: int = -1) -> None:
    scores = the(model, "Softmax").input[0]
    with_logarithm(model, reduced(model, "ReduceLogSumExp", scores, "total", axis))


def step_by_step(model: onnx.ModelProto) -> None:
    scores = the(model, "Softmax").input[0]
    with_logarithm(
        model,
        helper.make_node("Exp", [scores], ["powers"]),
        reduced(model, "ReduceSum", "powers", "sum", -1),
        helper.make_node("Log", ["sum"], ["total"]),
    )


def above_the_largest(model: onnx.ModelProto, axis: int = -1, twice: bool = False) -> None:
    scores = the(model, "Softmax").input[0]
    added = ["largest", "logarithm"]
    with_logarithm(
        model,
        reduced(model, "ReduceMax", scores, "largest", axis),
        helper.make_node("Sub", [scores, "largest"], ["below"]),
        helper.make_node("Exp", ["below"], ["powers"]),
        reduced(model, "ReduceSum", "powers", "sum", -1),
        helper.make_node("Log", ["sum"], ["logarithm"]),
        *([helper.make_node("Add", ["largest", "largest"], ["doubled"])] if twice else []),
        helper.make_node("Add", ["doubled", "logarithm"] if twice else added, ["total"]),
    )


LOGARITHMS: dict[str, Change] = {
    "at once": at_once,
    "step by step": step_by_step,
    "above the largest": above_the_largest,
}


MASKED = {"mask": "boolean", "fill": "infinite"}


@pytest.mark.parametrize(
    "changes", [MASKED, {"mask": "none"}, {"sinks": "some"}, {"size": "real", **MASKED}], ids=str
)
@pytest.mark.parametrize("name", LOGARITHMS)
def test_less_the_logarithm_of_the_sum(name: str, changes: dict[str, str]) -> None:
    model = build(settled(Plan(**changes)))
    LOGARITHMS[name](model)
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


OTHER_LOGARITHMS: dict[str, Change] = {
    "over queries": lambda model: at_once(model, -2),
    "largest of queries": lambda model: above_the_largest(model, -2),
    "largest twice": lambda model: above_the_largest(model, twice=True),
}


@pytest.mark.parametrize("name", OTHER_LOGARITHMS)
def test_what_is_less_something_else_is_refused(name: str) -> None:
    model = build(settled(Plan(**MASKED)))
    OTHER_LOGARITHMS[name](model)
    assert found(model).status == "refused"


@pytest.mark.parametrize("changes", [{"mask": "additive"}, {"mask": "boolean", "fill": "lowest"}])
def test_a_logarithm_that_is_lost_beside_what_a_mask_adds(changes: dict[str, str]) -> None:
    """Where every key is masked by a number, each gets the weight 1: no softmax gives that."""
    model = build(settled(Plan(**changes)))
    at_once(model)
    outcome = found(model)
    assert (outcome.status, outcome.codes) == ("refused", ("unsupported_attention",))


# Divided by the sum only after the product with the values


def divided_later(model: onnx.ModelProto, *, shifted: bool = True, axis: int = -1) -> None:
    """``exp(x) @ values / sum(exp(x))``."""
    softmax = the(model, "Softmax")
    scores, (made,) = softmax.input[0], softmax.output
    largest = [
        reduced(model, "ReduceMax", scores, "largest", -1),
        helper.make_node("Sub", [scores, "largest"], ["below"]),
    ]
    exponential = helper.make_node("Exp", ["below" if shifted else scores], [made])
    total = reduced(model, "ReduceSum", made, "sum", axis)
    instead(model, softmax, *(largest if shifted else []), exponential, total)
    product = weighted(model, made)
    (context,) = product.output
    product.output[0] = "undivided"
    place = list(model.graph.node).index(product) + 1
    model.graph.node.insert(place, helper.make_node("Div", ["undivided", "sum"], [context]))


def weighted(model: onnx.ModelProto, made: str) -> onnx.NodeProto:
    """The product of what the softmax makes with the values."""
    (node,) = (
        each
        for each in model.graph.node
        if made in each.input and each.op_type in ("MatMul", "Einsum")
    )
    return node


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask": "boolean", "fill": "infinite"},
        {"product": "einsum"},
        {"absorbed": "one_product"},
        {"cache": "expanded"},
        {"size": "real"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shifted", [True, False], ids=["shifted", "as it is"])
def test_division_after_the_values(changes: dict[str, str], shifted: bool) -> None:
    model = build(settled(Plan(**({"mask": "boolean"} | changes))))
    divided_later(model, shifted=shifted)
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


def of_values_of_others(model: onnx.ModelProto) -> None:
    """The sums are those of the exponentials of twice the scores."""
    divided_later(model)
    total = next(each for each in model.graph.node if "sum" in each.output)
    place = list(model.graph.node).index(total)
    twice = helper.make_node("Mul", [total.input[0], total.input[0]], ["squares"])
    model.graph.node.insert(place, twice)
    total.input[0] = "squares"


def added_before(model: onnx.ModelProto) -> None:
    """Something is added to the product before it is divided."""
    divided_later(model)
    number = stored(model, "a_tenth", 0.1, dtype=np.float32)
    division = next(each for each in model.graph.node if "undivided" in each.input)
    place = list(model.graph.node).index(division)
    more = helper.make_node("Add", ["undivided", number], ["more"])
    model.graph.node.insert(place, more)
    division.input[0] = "more"


OTHER_DIVISIONS: dict[str, Change] = {
    "by sums over queries": lambda model: divided_later(model, axis=-2),
    "by sums of others": of_values_of_others,
    "of more": added_before,
}


@pytest.mark.parametrize("name", OTHER_DIVISIONS)
def test_divisions_that_make_no_softmax_are_refused(name: str) -> None:
    model = build(settled(Plan()))
    OTHER_DIVISIONS[name](model)
    outcome = found(model)
    assert outcome.status == "refused", outcome
