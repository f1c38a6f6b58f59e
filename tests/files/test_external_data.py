"""Data beside a model: what is taken, what is refused, and what of it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mla_opt import api
from mla_opt.errors import InputError
from mla_opt.files.model_io import read_model, write_model
from mla_opt.verification import verify
from tests.graphs.latent_block import Block, build

WEIGHT = np.arange(600, dtype=np.float32).reshape(20, 30)


def external(name: str, location: str, offset: int = 0) -> onnx.TensorProto:
    """A tensor of the bytes of `WEIGHT` in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", WEIGHT.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def adding(tensors: list[onnx.TensorProto], functions: list[Any] | None = None) -> onnx.ModelProto:
    """A model that adds all tensors to its input."""
    names = ["x", *(tensor.name for tensor in tensors)]
    nodes = [helper.make_node("Sum", names, ["y"])]
    kind = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [kind("x", 1, [20, 30])], [kind("y", 1, [20, 30])], tensors
    )
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10, functions=functions or [])


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A model as the Hugging Face cache keeps it: links to blobs, in a folder of the snapshot."""
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123abcd" / "onnx", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    onnx.save_model(
        build(Block()), snapshot / "model.onnx", save_as_external_data=True,
        location="model.onnx_data", size_threshold=256,
    )  # fmt: skip
    for name in ("model.onnx", "model.onnx_data"):
        (snapshot / name).rename(blobs / f"sha-of-{name}")
        (snapshot / name).symlink_to(Path("../../../blobs") / f"sha-of-{name}")
    return snapshot / "model.onnx"


def test_links_of_the_hugging_face_cache_are_taken(cached: Path, tmp_path: Path) -> None:
    result = api.optimize(cached)
    assert len(result.report.sites) == 1
    written = write_model(result.model, tmp_path / "out.onnx", inputs=[cached])
    assert [path.is_symlink() for path in written] == [False, False]
    assert verify(cached, tmp_path / "out.onnx").passed


@pytest.mark.parametrize("target", ["../../../../secret", "../../../refs/main", "/etc/hostname"])
def test_other_links_of_such_a_folder_are_not(cached: Path, target: str) -> None:
    data = cached.with_name("model.onnx_data")
    data.unlink()
    data.symlink_to(target)
    with pytest.raises(InputError, match="behind a link out of the model's folder"):
        read_model(cached)


def test_blobs_of_another_repository_are_not(cached: Path) -> None:
    other = cached.parents[4] / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    data = cached.with_name("model.onnx_data")
    data.resolve().rename(other / "weights")
    data.unlink()
    data.symlink_to(other / "weights")
    with pytest.raises(InputError, match="behind a link out of the model's folder"):
        read_model(cached)


def test_a_path_that_ends_like_a_folder(tmp_path: Path) -> None:
    WEIGHT.tofile(tmp_path / "w.bin")
    path = saved(tmp_path / "m.onnx", adding([external("w", "w.bin/")]))
    with pytest.raises(InputError, match=r"'w\.bin/', which is a folder's"):
        read_model(path)


def function(tensor: onnx.TensorProto, place: str) -> onnx.FunctionProto:
    """A function that holds a tensor: as a default, in a node, or in a branch."""
    opset = [helper.make_opsetid("", 18)]
    if place == "default":
        node = helper.make_node("Constant", [], ["w"])
        node.attribute.append(onnx.AttributeProto(name="value", type=4, ref_attr_name="value"))
        default = [helper.make_attribute("value", tensor)]
        return helper.make_function("d", "F", [], ["w"], [node], opset, attribute_protos=default)
    if place == "node":
        node = helper.make_node("Constant", [], ["w"], value=tensor)
        return helper.make_function("d", "F", [], ["w"], [node], opset)
    out = helper.make_tensor_value_info("v", 1, None)
    inner = helper.make_node("Identity", [tensor.name], ["v"])
    branch = helper.make_graph([inner], "b", [], [out], [tensor])
    node = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
    return helper.make_function("d", "F", ["c"], ["w"], [node], opset)


@pytest.mark.parametrize("place", ["default", "node", "branch"])
def test_data_of_functions(tmp_path: Path, place: str) -> None:
    """It is checked like any other, and goes along when the model is written elsewhere."""
    WEIGHT.tofile(tmp_path / "secret.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    escaping = adding([], [function(external("w0", "../secret.bin"), place)])
    with pytest.raises(InputError, match="outside the model's folder"):
        read_model(saved(folder / "m.onnx", escaping))
    WEIGHT.tofile(folder / "w.bin")
    path = saved(folder / "m.onnx", adding([], [function(external("w0", "w.bin"), place)]))
    (written,) = write_model(read_model(path), tmp_path / "out.onnx")
    assert b"w.bin" not in written.read_bytes()
    assert WEIGHT.tobytes() in written.read_bytes()


def test_shared_ranges_stay_shared(tmp_path: Path) -> None:
    """Many initializers of one range, in several shapes, are written once."""
    WEIGHT.tofile(tmp_path / "w.bin")
    tensors = [external(f"w{index}", "w.bin") for index in range(20)]
    path = saved(tmp_path / "m.onnx", adding(tensors))
    flat = external("flat", "w.bin")
    del flat.dims[:]
    flat.dims.extend([1, 600])
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(flat)
    model.graph.output.append(helper.make_tensor_value_info("flat", 1, [1, 600]))
    read = read_model(saved(path, model))
    _, data = write_model(read, tmp_path / "out.onnx")
    assert data.stat().st_size == WEIGHT.nbytes
    session = ort.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    y, told = session.run(None, {"x": WEIGHT})
    np.testing.assert_array_equal(y, 21 * WEIGHT)
    np.testing.assert_array_equal(told.reshape(20, 30), WEIGHT)
    assert all(
        isinstance(v.const_value, ir.ExternalTensor) for v in read.graph.initializers.values()
    )
