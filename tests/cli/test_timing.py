"""Timing a decode step: the past that was asked for is the past that the model is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from mla_opt.cli import _timing
from mla_opt.report.timing import timing_table
from mla_opt.verification.onnx.sessions import Session


def cached(path: Path) -> Path:
    """Save a model that appends its input to a cache and sums it."""
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["inputs_embeds", "one"], ["new"]),
            helper.make_node("Concat", ["past_key", "new"], ["present_key"], axis=2),
            helper.make_node("ReduceSum", ["present_key"], ["y"], keepdims=1),
        ],
        "g",
        [
            helper.make_tensor_value_info(
                "inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", 8]
            ),
            helper.make_tensor_value_info("past_key", TensorProto.FLOAT, ["batch", 1, "past", 8]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1]),
            helper.make_tensor_value_info("present_key", TensorProto.FLOAT, ["batch", 1, "t", 8]),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_the_asked_past_is_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached(tmp_path / "m.onnx")
    shapes: list[tuple[int, ...]] = []
    original = Session.run

    def spy(self: Session, feeds: Any) -> Any:
        shapes.append(feeds["past_key"].shape + feeds["inputs_embeds"].shape)
        return original(self, feeds)

    monkeypatch.setattr(Session, "run", spy)
    before, after = _timing.decode_seconds(path, path, 37)
    assert min(before, after) > 0
    assert set(shapes) == {(1, 1, 37, 8, 1, 1, 8)}
    assert len(shapes) == 18


def test_table_gives_the_factor() -> None:
    table = timing_table([(512, 3e-3, 1e-3)])
    assert [list(column.cells) for column in table.columns] == [
        ["512"],
        ["3 ms"],
        ["1 ms"],
        ["3.00x"],
    ]
