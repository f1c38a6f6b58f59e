"""Models in and out of files: what is refused and in which words, and what is left behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mla_opt.errors import InputError
from mla_opt.files import model_io
from mla_opt.files import transaction as writing_files

WEIGHT = np.arange(600, dtype=np.float32).reshape(20, 30)


def proto(opset: int = 18, domain: str = "", extra: tuple[onnx.NodeProto, ...] = ()) -> Any:
    """One MatMul with a weight of 2400 bytes, and a tiny bias."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y0"]),
            helper.make_node("Add", ["y0", "b"], ["y"]),
            *extra,
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 30])],
        [onnx.numpy_helper.from_array(WEIGHT, "w"),
         onnx.numpy_helper.from_array(np.ones(30, np.float32), "b")],
    )  # fmt: skip
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, opset), helper.make_opsetid("other", 1)],
        ir_version=10,
        producer_name="tests",
        producer_version="7",
    )


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_external(path: Path, location: str = "w.bin", **fields: int | str) -> Path:
    """Save with ``w`` in an external file that is written only if it belongs in the folder."""
    model = proto()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": 0, "length": WEIGHT.nbytes, **fields}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return save(path, model)


def message(call: Callable[[], object], path: Path) -> str:
    """Return the one line that ``call`` is refused with; it must begin with the file."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def refused(path: Path) -> str:
    return message(lambda: model_io.read_model(path), path)


# Reading.


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


# Writing.


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return model_io.read_model(save(tmp_path / "in.onnx", proto()))


def outputs(folder: Path) -> list[str]:
    """Every file in a folder but the input, hidden ones included."""
    return sorted(f.name for f in folder.iterdir() if f.name not in ("in.onnx", "w.bin"))


def run(path: Path) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones((2, 3, 20), np.float32)})
    return np.asarray(result)


EXPECTED = np.ones((2, 3, 20), np.float32) @ WEIGHT + 1


def test_writes_inline(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / "out.onnx"
    assert model_io.write_model(model, out) == (out,)
    np.testing.assert_allclose(run(out), EXPECTED)
    assert outputs(tmp_path) == ["out.onnx"]


def test_writes_external_above_the_limit(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / "out.onnx"
    written = model_io.write_model(model, out, inline_limit=1000)
    assert written == (out, tmp_path / "out.onnx.data")
    assert outputs(tmp_path) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_allclose(run(out), EXPECTED)
    stored = {
        t.name: t.data_location for t in onnx.load(out, load_external_data=False).graph.initializer
    }
    assert stored == {"w": TensorProto.EXTERNAL, "b": TensorProto.DEFAULT}
    onnx.checker.check_model(str(out), full_check=True)


def test_writing_leaves_the_model_as_it_was(tmp_path: Path, model: ir.Model) -> None:
    before = model.graph.initializers["w"].const_value
    model_io.write_model(model, tmp_path / "out.onnx", inline_limit=0)
    assert model.graph.initializers["w"].const_value is before


def test_external_input_gives_external_output_elsewhere(tmp_path: Path) -> None:
    path = save_external(tmp_path / "in.onnx")
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = model_io.read_model(path)
    other = tmp_path / "other"
    other.mkdir()
    model_io.write_model(model, other / "out.onnx", inputs=[path])
    assert outputs(other) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_allclose(run(other / "out.onnx"), EXPECTED)


def test_shared_tensor_is_written_once(tmp_path: Path, model: ir.Model) -> None:
    twin = ir.Value(name="w2", const_value=model.graph.initializers["w"].const_value)
    model.graph.register_initializer(twin)
    _, data = model_io.write_model(model, tmp_path / "out.onnx", inline_limit=0)
    assert data.stat().st_size == WEIGHT.nbytes


def test_never_overwrites_without_force(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    assert "--force" in message(lambda: model_io.write_model(model, out), out)
    assert out.read_text() == "precious"
    model_io.write_model(model, out, force=True)
    np.testing.assert_allclose(run(out), EXPECTED)


def test_never_overwrites_a_data_file_without_force(tmp_path: Path, model: ir.Model) -> None:
    data = tmp_path / "out.onnx.data"
    data.write_text("precious")
    out = tmp_path / "out.onnx"
    assert "--force" in message(lambda: model_io.write_model(model, out, inline_limit=0), data)
    assert outputs(tmp_path) == ["out.onnx.data"]


@pytest.mark.parametrize("alias", ["same", "symlink", "hardlink", "dots"])
def test_never_overwrites_the_input(tmp_path: Path, model: ir.Model, alias: str) -> None:
    source = tmp_path / "in.onnx"
    out = {"same": source, "dots": tmp_path / ".." / tmp_path.name / "in.onnx"}.get(
        alias, tmp_path / "alias.onnx"
    )
    if alias == "symlink":
        out.symlink_to(source)
    if alias == "hardlink":
        out.hardlink_to(source)
    before = source.read_bytes()
    write = lambda: model_io.write_model(model, out, force=True, inputs=[source])  # noqa: E731
    assert "is read as an input" in message(write, out)
    assert source.read_bytes() == before


def test_never_overwrites_the_data_of_the_input(tmp_path: Path) -> None:
    path = save_external(tmp_path / "in.onnx", "out.onnx.data")
    data = tmp_path / "out.onnx.data"
    data.write_bytes(WEIGHT.tobytes())
    model = model_io.read_model(path)
    out = tmp_path / "out.onnx"
    write = lambda: model_io.write_model(model, out, force=True)  # noqa: E731
    assert "is read as an input" in message(write, data)
    assert data.read_bytes() == WEIGHT.tobytes()


def test_missing_folder_and_folder_as_name(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / "none" / "out.onnx"
    assert "there is no folder" in message(lambda: model_io.write_model(model, out), out)
    assert "is a folder" in message(lambda: model_io.write_model(model, tmp_path), tmp_path)
    out = tmp_path / "in.onnx" / "out.onnx"
    assert "is not a folder" in message(lambda: model_io.write_model(model, out), out)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Run as a user whom file permissions bind, if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folder_without_write_permission(model: ir.Model, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("locked")
    # The parents are private to the user who runs the tests.
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o555)
    out = folder / "out.onnx"
    try:
        with unprivileged():
            cause = message(lambda: model_io.write_model(model, out), out)
    finally:
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(0o700)
    assert "ermission" in cause
    assert outputs(folder) == []


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_full_disk_leaves_nothing(
    tmp_path: Path, model: ir.Model, monkeypatch: pytest.MonkeyPatch, call: str, limit: int
) -> None:
    out = tmp_path / "out.onnx"
    monkeypatch.setattr(writing_files.os, call, full_disk)
    cause = message(lambda: model_io.write_model(model, out, inline_limit=limit), out)
    monkeypatch.undo()
    assert "No space left on device" in cause
    assert outputs(tmp_path) == []


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", ["rename", "replace"])
def test_failing_rename_leaves_the_old_pair(
    tmp_path: Path, model: ir.Model, monkeypatch: pytest.MonkeyPatch, failing: str, existing: bool
) -> None:
    """The data file is renamed first; when a rename fails, the old pair must be whole."""
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    if existing:
        out.write_text("old model")
        data.write_text("old data")
    monkeypatch.setattr(Path, failing, full_disk)
    message(lambda: model_io.write_model(model, out, force=True, inline_limit=0), out)
    monkeypatch.undo()
    if existing:
        assert (out.read_text(), data.read_text()) == ("old model", "old data")
    assert outputs(tmp_path) == (["out.onnx", "out.onnx.data"] if existing else [])


def test_a_forced_pair_takes_another_name_for_its_data(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / "out.onnx"
    for name in ("out.onnx.data", "out.onnx.1.data", "out.onnx.data"):
        written = model_io.write_model(model, out, force=True, inline_limit=0)
        assert written == (out, tmp_path / name)
        assert outputs(tmp_path) == sorted(["out.onnx", name])
        np.testing.assert_allclose(run(out), EXPECTED)


def test_interrupted_write_leaves_nothing(
    tmp_path: Path, model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing_files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model_io.write_model(model, tmp_path / "out.onnx", inline_limit=0)
    assert outputs(tmp_path) == []


REAL_LIMIT = """
import resource, sys
from mla_opt.files import model_io
from mla_opt.errors import InputError
model = model_io.read_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    model_io.write_model(model, sys.argv[2], inline_limit=int(sys.argv[3]))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", ["0", "1000000"])
def test_a_real_limit_on_file_size(tmp_path: Path, limit: str) -> None:
    """The system itself stops the write in the middle of the weights."""
    assert resource.RLIMIT_FSIZE is not None
    source, out = save(tmp_path / "in.onnx", proto()), tmp_path / "out.onnx"
    command = [sys.executable, "-c", REAL_LIMIT, str(source), str(out), limit]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith(f"{out}: cannot be written: ")
    assert done.stdout.count("\n") == 1
    assert outputs(tmp_path) == []


def test_text_files_follow_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    model_io.write_text(path, "one")
    assert "--force" in message(lambda: model_io.write_text(path, "two"), path)
    model_io.write_text(path, "two", force=True)
    assert path.read_text() == "two"
    monkeypatch.setattr(writing_files.os, "fsync", full_disk)
    message(lambda: model_io.write_text(path, "three", force=True), path)
    assert path.read_text() == "two"
    assert outputs(tmp_path) == ["report.json"]


def test_new_files_get_ordinary_permissions(tmp_path: Path, model: ir.Model) -> None:
    (tmp_path / "plain").write_text("")
    model_io.write_model(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_name_too_long_to_write(tmp_path: Path, model: ir.Model) -> None:
    out = tmp_path / ("x" * 300)
    assert "name too long" in message(lambda: model_io.write_model(model, out), out)


def test_text_with_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    model_io.write_text(path, '"' + os.fsdecode(b"a\x80") + '"')
    assert path.read_bytes() == b'"a\\udc80"'
