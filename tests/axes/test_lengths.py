"""`Attention` of opset 24 with `nonpad_kv_seqlen`: keys behind a sequence's length are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, equal_or_refused
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])


def with_lengths(
    *, product: str = "attention", causal: bool, masked: bool, less: int = 0, size: str = "tiny"
) -> onnx.ModelProto:
    """A buffer by `TensorScatter`; how far it is filled, less some rows, is what lengths say."""
    plan = Plan(cache="static_expanded", product=product, put="rows", size=size)
    model = build(settled(plan))
    node = attention(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array([less]), "rows_less"))
    front = [
        helper.make_node("Shape", ["x"], ["new_rows"], start=1, end=2),
        helper.make_node("Add", ["write_start", "new_rows"], ["rows_filled"]),
        helper.make_node("Sub", ["rows_filled", "rows_less"], ["lengths"]),
    ]
    for each in reversed(front):
        model.graph.node.insert(0, each)
    mask = node.input[3] if masked else ""
    node.input[3:] = [mask, "", "", "lengths"]
    kept = [each for each in node.attribute if each.name != "is_causal"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("is_causal", int(causal))])
    return model


def attention(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = (each for each in model.graph.node if each.op_type == "Attention")
    return node


@pytest.mark.parametrize(
    ("product", "asked"),
    [("attention", "nothing"), ("attention", "packed"), ("attention3", "portable")],
)
@pytest.mark.parametrize(("causal", "masked"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_lengths_of_sequences(product: str, causal: int, masked: int, asked: str) -> None:
    model = with_lengths(product=product, causal=bool(causal), masked=bool(masked))
    outcome = equal_or_refused(model, sizes=SMALL, **ASKED[asked])
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


@pytest.mark.parametrize("less", [1, 3])
def test_queries_that_have_no_keys(less: int) -> None:
    """Fewer keys than queries: the first queries see none."""
    outcome = equal_or_refused(with_lengths(causal=True, masked=False, less=less), sizes=SMALL)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


def test_lengths_at_the_widths_of_released_models() -> None:
    model = with_lengths(causal=True, masked=False, size="real")
    outcome = equal_or_refused(model, sizes=SMALL[:1])
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


def narrow_mask(model: onnx.ModelProto) -> None:
    """A mask of fewer columns than keys, which the operator makes longer."""
    node = attention(model)
    stored = {"no_column": [0], "few_columns": [40], "last_axis": [3]}
    for name, numbers in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
    cut = helper.make_node("Slice", [node.input[3], *stored], ["narrow"])
    model.graph.node.insert(list(model.graph.node).index(node), cut)
    node.input[3] = "narrow"


def window(model: onnx.ModelProto) -> None:
    """Each query sees a few keys only, as opset 25 has it."""
    model.opset_import[0].version = 25
    attention(model).attribute.append(helper.make_attribute("left_window_size", 3))


def capped(model: onnx.ModelProto) -> None:
    attention(model).attribute.append(helper.make_attribute("softcap", 5.0))


REFUSED = {"columns": narrow_mask, "window": window, "softcap": capped}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_more_than_lengths_is_refused(said: str) -> None:
    model = with_lengths(causal=False, masked=True)
    change: Callable[[onnx.ModelProto], None] = REFUSED[said]
    change(model)
    outcome = equal_or_refused(model, sizes=SMALL)
    assert (outcome.status, outcome.codes) == ("refused", ("unsupported_attention",)), outcome
    assert said in outcome.where
