"""How much text a model may have, and in how many parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from mla_opt.files import text
from mla_opt.files.model_io import read_model
from tests.files.small_models import proto, refused, save

Filled = Callable[[onnx.ModelProto], None]


def metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="notes", value="x" * 3000)


def documentation(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "x" * 3000


def value_info(model: onnx.ModelProto) -> None:
    for index in range(150):
        model.graph.value_info.append(helper.make_tensor_value_info(f"v{index}", 1, ["B"]))


def short_texts(model: onnx.ModelProto) -> None:
    """Each letter of them takes little, and each of them an object."""
    model.graph.node[0].attribute.add(name="names", type=onnx.AttributeProto.STRING)
    model.functions.add(name="f", domain="d", input=[f"{i}" for i in range(150)])


@pytest.mark.parametrize("fill", [metadata, documentation, value_info, short_texts])
def test_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Filled) -> None:
    monkeypatch.setattr(text, "MOST_TEXT", 2500)
    model = proto()
    read_model(save(tmp_path / "m.onnx", model))
    fill(model)
    cause = refused(save(tmp_path / "m.onnx", model))
    assert "names, metadata and documentation; remove metadata_props" in cause


def test_too_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_PARTS", 200)
    model = proto()
    read_model(save(tmp_path / "m.onnx", model))
    value_info(model)
    assert "has more than 200 parts" in refused(save(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("name", ["a\x1b]0;title\x07", "a\nb", "a\x9b1m", "a\x00b"])
def test_names_that_a_terminal_would_obey(tmp_path: Path, name: str) -> None:
    model = proto()
    model.graph.node[0].name = name
    cause = refused(save(tmp_path / "m.onnx", model))
    assert f"has a name in a NodeProto with control characters: {name!r}" in cause


@pytest.mark.parametrize("name", ["größe", "模型", "a b", "a\u00a0b", "x" * 100_000])
def test_other_names_are_names(tmp_path: Path, name: str) -> None:
    model = proto()
    model.graph.node[0].name = name
    model.graph.node[0].doc_string = 'File "model.py", line 3\n\tx = \x1b[1mwarn\x1b[0m'
    read_model(save(tmp_path / "m.onnx", model))


def test_the_limit_is_far_above_what_exporters_write() -> None:
    """Those that note where every node is from write 2 kB a node, in some thirty parts."""
    assert text.MOST_TEXT >= 100_000 * 2000
    assert text.MOST_PARTS >= 100_000 * 30
