"""The harness tells equal from wrong, and refused from broken; nothing here needs the matcher."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import mla_opt
from mla_opt.errors import NothingMatchedError, PassError, Refusal
from tests.axes.feeding import Feeds, Size, understand
from tests.axes.harness import FEW, SIZES, Outcome, deviation, equal_or_refused
from tests.axes.plan import Plan
from tests.axes.writer import build

WRONG = (
    "value t reversed 1000",
    "value b swapped 2",
    "scores t windowed 1000",
    "probs t cropped 1000",
    "k_pe t scattered 1000",
    "query s reversed 200",
    "key h rolled 1",
    "model - order 0",
)


def judged(
    monkeypatch: pytest.MonkeyPatch, before: onnx.ModelProto, after: onnx.ModelProto
) -> Outcome:
    """What the harness says if the optimizer makes `after` of `before`."""
    report = SimpleNamespace(refusals=(), sites=(0,))
    result = SimpleNamespace(model=ir.from_proto(after), report=report)
    monkeypatch.setattr(mla_opt, "optimize", lambda model, **options: result)
    return equal_or_refused(before)


@pytest.mark.parametrize("mutation", WRONG)
def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    found = judged(monkeypatch, build(Plan()), build(Plan(mutations=(mutation,))))
    assert (found.status, found.wrong) == ("wrong", True)


def test_another_writing_of_the_same_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Plan(storage="einsum", product="bmm", k_pe="copies", key="two_products", out="gemm")
    found = judged(monkeypatch, build(Plan()), build(other))
    assert (found.status, found.ran) == ("equal", len(SIZES))
    assert 0 < found.error < 1e-5


def test_a_result_that_does_not_load_or_run_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = build(Plan())
    broken.graph.node[-1].op_type = "NoSuchOperator"
    assert "does not load" in judged(monkeypatch, build(Plan()), broken).where
    stuck = build(Plan())
    shape = next(each for each in stuck.graph.node if each.op_type == "Reshape")
    stuck.graph.initializer.append(helper.make_tensor("fixed", TensorProto.INT64, [3], [1, 1, -1]))
    shape.input[1] = "fixed"
    found = judged(monkeypatch, build(Plan()), stuck)
    assert found.status == "wrong"


def test_a_lost_output_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = build(Plan())
    del fewer.graph.output[0]
    assert judged(monkeypatch, build(Plan()), fewer).error == np.inf


def test_refusals_and_crashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(model: object, **options: object) -> None:
        refusal = Refusal("layers.0", "not_linear", "a reason", ("a node",))
        raise NothingMatchedError("none", SimpleNamespace(refusals=(refusal,)))

    def breaks(model: object, **options: object) -> None:
        raise PassError("pass one failed: KeyError('a')")

    monkeypatch.setattr(mla_opt, "optimize", refuses)
    found = equal_or_refused(build(Plan()))
    assert (found.status, found.codes, found.wrong) == ("refused", ("not_linear",), False)
    monkeypatch.setattr(mla_opt, "optimize", breaks)
    assert equal_or_refused(build(Plan())).status == "crash"


def test_an_original_that_does_not_run_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = build(Plan())
    broken.graph.node[-1].op_type = "NoSuchOperator"
    assert judged(monkeypatch, broken, build(Plan())).status == "not runnable"


@pytest.mark.parametrize("cache", ["keep", "packed", "static:1700"])
@pytest.mark.parametrize("kept", ["latent", "expanded"])
def test_caches_that_are_replaced_are_filled_by_calls(kept: str, cache: str) -> None:
    found = equal_or_refused(build(Plan(cache=kept)), sizes=(*FEW, SIZES[12]), cache=cache)
    assert (found.status, found.ran) == ("equal", len(FEW) + 1)


# What is fed


@pytest.mark.parametrize("axes", ["heads", "tokens", "turned", "flat", "first"])
@pytest.mark.parametrize("cache", ["latent", "joint", "expanded", "static", "static_expanded"])
def test_inputs_are_understood(cache: str, axes: str) -> None:
    model = build(Plan(cache=cache, cache_axes=axes, source="ids"))
    inputs = understand(model)
    assert inputs.capacity == (1203 if cache.startswith("static") else None)
    fed = Feeds(inputs, Size(2, 3, 5)).draw()
    assert fed["input_ids"].shape == (2, 3)
    assert fed["input_ids"].max() > 8
    for port in inputs.of("cache"):
        known = {2: "B", inputs.capacity or 5: "P"}
        assert known.keys() <= set(fed[port.name].shape)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_are_as_they_are_called(size: Size) -> None:
    model = build(Plan(mask="boolean"))
    seen = Feeds(understand(model), size).draw()["mask"]
    assert seen.shape == (size.batch, 1, size.query, size.total)
    ordered = np.tri(size.query, size.total, size.past, dtype=bool)
    if size.masks == "causal":
        assert (seen == ordered).all()
    if size.masks == "ragged":
        assert not (seen & ~ordered).any()
    if size.masks in ("ragged", "random") and size.total > 30:
        assert not (seen >= ordered).all()
    if size.masks == "open":
        assert seen.all()


def test_a_deviation_is_relative_and_holds_no_more_than_the_original_says() -> None:
    wanted = np.array([4.0, np.nan, 2.0], np.float32)
    assert deviation(wanted, np.array([4.0, 1.0, 1.0], np.float32)) == 0.25
    assert deviation(wanted, np.array([np.nan, 1.0, 2.0], np.float32)) == np.inf
    assert deviation(wanted, wanted[:2]) == np.inf
    assert deviation(wanted, None) == np.inf
