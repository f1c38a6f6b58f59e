"""Models out of files: what is refused and in which words, names and hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mla_opt.files import model_io
from tests.files.small_models import WEIGHT, message, proto, refused, save, save_external


def test_reads_a_model(tmp_path: Path) -> None:
    model = model_io.read_model(save(tmp_path / "m.onnx", proto()))
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)


def test_reads_external_data_lazily(tmp_path: Path) -> None:
    path = save_external(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = model_io.read_model(path)
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    assert weight.raw is None, "read before it was used"
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)


def test_external_data_is_found_from_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_external(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    model = model_io.read_model("m.onnx")
    monkeypatch.chdir("/")
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.onnx")


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)


def test_device_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    assert "not a regular file" in refused(Path("/dev/zero"))


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / ("x" * 5000))
    assert "cannot be read" in refused(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n", "is not an ONNX model; give"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"a": 1}', "JSON or safetensors"),
        (bytes(100), "is not an ONNX model; give"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert cause in refused(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = proto().SerializeToString()
    path = tmp_path / "m.onnx"
    causes = set()
    for length in range(1, len(content) - 12, 7):
        path.write_bytes(content[:length])
        causes.add(refused(path))
    assert any("truncated or damaged" in cause for cause in causes)


def test_cut_between_graph_and_opset_imports(tmp_path: Path) -> None:
    model = proto()
    del model.opset_import[:]
    assert "imports no ONNX opset" in refused(save(tmp_path / "m.onnx", model))


def test_only_a_foreign_opset(tmp_path: Path) -> None:
    model = proto()
    del model.opset_import[0]
    assert "imports no ONNX opset" in refused(save(tmp_path / "m.onnx", model))


def test_old_and_new_opsets(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert "opset 13 is too old, 14 is the oldest" in refused(save(path, proto(13)))
    newest = onnx.defs.onnx_opset_version()
    assert f"newer than the installed onnx knows ({newest})" in refused(
        save(path, proto(newest + 1))
    )
    for opset in (14, newest):
        assert model_io.read_model(save(path, proto(opset))).opset_imports[""] == opset


def test_long_name_of_the_default_domain(tmp_path: Path) -> None:
    assert "too old" in refused(save(tmp_path / "m.onnx", proto(13, domain="ai.onnx")))


@pytest.mark.parametrize("version", [2, 99])
def test_unknown_ir_version(tmp_path: Path, version: int) -> None:
    model = proto()
    model.ir_version = version
    assert f"IR version {version} is unknown" in refused(save(tmp_path / "m.onnx", model))


def test_no_graph(tmp_path: Path) -> None:
    model = proto()
    model.ClearField("graph")
    assert "no graph" in refused(save(tmp_path / "m.onnx", model))


def test_no_outputs(tmp_path: Path) -> None:
    model = proto()
    del model.graph.output[:]
    assert "no outputs" in refused(save(tmp_path / "m.onnx", model))


def test_sparse_initializers_are_not_lost_silently(tmp_path: Path) -> None:
    model = proto()
    model.graph.sparse_initializer.add().dims.extend([3, 3])
    assert "sparse initializers" in refused(save(tmp_path / "m.onnx", model))


def test_malformed_attribute(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].data_type = 99
    assert "is malformed" in refused(save(tmp_path / "m.onnx", model))


def test_inline_tensor_of_another_size(tmp_path: Path) -> None:
    model = proto()
    model.graph.initializer[0].dims[0] = 10**12
    assert "holds 2400 bytes, its shape needs" in refused(save(tmp_path / "m.onnx", model))
    model.graph.initializer[0].dims[0] = -20
    assert "impossible shape" in refused(save(tmp_path / "m.onnx", model))


def test_typed_tensor_of_another_size(tmp_path: Path) -> None:
    model = proto()
    bias = model.graph.initializer[1]
    bias.ClearField("raw_data")
    bias.float_data.extend([1.0] * 29)
    assert "holds 29 elements, its shape needs 30" in refused(save(tmp_path / "m.onnx", model))
    bias.float_data.append(1.0)
    assert model_io.read_model(save(tmp_path / "m.onnx", model)).graph.initializers["b"]


@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("../w.bin", "outside the model's folder"),
        ("a/../../w.bin", "outside the model's folder"),
        ("/etc/passwd", "not relative"),
        ("", "not relative"),
        ("missing.bin", "No such file or directory"),
        ("link.bin", "behind a link out of the model's folder"),
        ("folder/w.bin", "behind a link out of the model's folder"),
        ("twice.bin", "several hard links"),
        (".", "no regular file"),
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, cause: str) -> None:
    outside, inside = tmp_path / "w.bin", tmp_path / "models"
    outside.write_bytes(WEIGHT.tobytes())
    inside.mkdir()
    (inside / "a").mkdir()
    (inside / "link.bin").symlink_to(outside)
    (inside / "folder").symlink_to(tmp_path)
    (inside / "twice.bin").hardlink_to(outside)
    assert cause in refused(save_external(inside / "m.onnx", location))


def test_links_within_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w.bin").symlink_to(tmp_path / "blob")
    assert model_io.read_model(save_external(tmp_path / "m.onnx")).graph.initializers["w"]


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"offset": 8}, "needs 2408 bytes of 'w.bin', which has 2400: truncated"),
        ({"length": 10**15}, "its shape needs 2400"),
        ({"length": 16}, "its shape needs 2400"),
        ({"offset": -4}, "non-negative"),
        ({"offset": "x"}, "is malformed: invalid literal"),
    ],
)
def test_external_extent(tmp_path: Path, fields: dict[str, Any], cause: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert cause in refused(save_external(tmp_path / "m.onnx", **fields))


def test_huge_external_shape_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = save_external(tmp_path / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = 10**13
    del model.graph.initializer[0].external_data[2]
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert "truncated" in refused(save(path, model))


def test_external_tensor_of_an_attribute_is_checked_and_loaded(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(WEIGHT, "c"))
    tensor = node.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.bin")
    path = save(tmp_path / "m.onnx", proto(extra=(node,)))
    assert "'c.bin'" in refused(path)
    (tmp_path / "c.bin").write_bytes(WEIGHT.tobytes())
    model = model_io.read_model(path)
    assert model_io.model_files(path, model) == (path,)
    constant = model.graph.node(2).attributes["value"].as_tensor()
    np.testing.assert_array_equal(constant.numpy(), WEIGHT)


def test_unknown_operators_are_recorded_not_refused(tmp_path: Path) -> None:
    extra = (
        helper.make_node("Odd", ["y"], ["z"], domain="other"),
        helper.make_node("Gelu", ["y"], ["z2"], domain="com.microsoft"),
    )
    model = model_io.read_model(save(tmp_path / "m.onnx", proto(extra=extra)))
    assert model_io.unknown_operators(model) == ("other::Odd",)


def test_operators_with_a_body_are_known(tmp_path: Path) -> None:
    model = proto(extra=(helper.make_node("Odd", ["y"], ["z"], domain="other"),))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("other", "Odd", ["a"], ["b"], body, opsets))
    read = model_io.read_model(save(tmp_path / "m.onnx", model))
    assert model_io.unknown_operators(read) == ()


# Names, hashes, descriptions.


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a/m.onnx", "a/m.mla.onnx"), ("m.ONNX", "m.mla.onnx"), ("m.v1.onnx", "m.v1.mla.onnx"),
     ("m.bin", "m.bin.mla.onnx")],
)  # fmt: skip
def test_default_output(given: str, expected: str) -> None:
    assert model_io.default_output(given) == Path(expected)


def test_hash_and_description(tmp_path: Path) -> None:
    path = save_external(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = model_io.read_model(path)
    file = model_io.describe(model_io.model_files(path, model), model)
    content = path.read_bytes() + WEIGHT.tobytes()
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert file.bytes == len(content)
    assert file.external_data == ("w.bin",)
    assert (file.ir_version, file.producer) == (10, "tests 7")
    assert file.opset_imports == {"": 18, "other": 1}


def test_hash_of_a_missing_file(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert "cannot be read" in message(lambda: model_io.sha256([gone]), gone)
