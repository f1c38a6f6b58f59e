"""Exports that are kept beside the sources are what exporters write, and nothing else."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.end_to_end.selection import KEPT, KEPT_CONTROLS
from tests.exports import kept
from tests.exports.controls import stem

NAMES = (*(spec.id for spec in KEPT), *(stem(*control) for control in KEPT_CONTROLS))


def test_all_are_there_and_no_others() -> None:
    assert {path.stem for path in kept.FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_missing_and_no_path_of_a_machine_is_left(name: str, tmp_path: Path) -> None:
    kept.unpack(name, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    if "hf_ort" not in name:  # its fusions write an operator without its domain
        onnx.checker.check_model(model)
    sizes = [len(onnx.numpy_helper.to_array(each).ravel()) for each in model.graph.initializer]
    assert max(sizes) > 1000
    assert [place.value for place in kept.places(model) if kept.PATH.search(place.value)] == []


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_the_exporter_writes_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.unpack(name, tmp_path / "model.onnx")
    monkeypatch.setenv(kept.ANEW_VARIABLE, "1")
    path, _ = kept.exports()[name]()
    before, after = onnx.load(path), onnx.load(tmp_path / "model.onnx")
    for model in (before, after):
        for place in kept.places(model):
            place.value = ""
    assert after.SerializeToString(deterministic=True) == before.SerializeToString(
        deterministic=True
    )
