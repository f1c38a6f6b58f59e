"""Masks of any shape that is broadcast to the scores, as inputs: what each axis is, is told."""

from __future__ import annotations

import onnx
import pytest

import mla_opt
from tests.axes.harness import FEW, equal_or_refused
from tests.axes.plan import Plan
from tests.axes.writer import build

SHAPES = [("S", "T"), (1, "S", "T"), (1, 1, "S", "T"), ("B", 1, 1, "T"), ("B", 3, "S", "T")]


def model(shape: tuple[str | int, ...], kind: str) -> onnx.ModelProto:
    """A latent attention whose mask is an input of this shape."""
    made = build(Plan(mask=kind, fill="infinite" if kind == "boolean" else "lowest"))
    (mask,) = (port for port in made.graph.input if port.name == "mask")
    element = mask.type.tensor_type.elem_type
    mask.CopyFrom(onnx.helper.make_tensor_value_info("mask", element, shape))
    return made


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_mask_of_any_shape(shape: tuple[str | int, ...], kind: str) -> None:
    found = equal_or_refused(model(shape, kind), sizes=FEW)
    assert (found.status, found.matched) == ("equal", 1), found


def test_a_mask_for_all_sequences_is_fed_as_one_when_the_result_is_verified() -> None:
    result = mla_opt.optimize(model(("S", "T"), "boolean"))
    assert result.report.verification is not None
    assert result.report.verification["passed"] is True
