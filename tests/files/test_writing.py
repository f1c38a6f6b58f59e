"""Models into files: what is refused and in which words, and what is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from mla_opt.files import model_io
from mla_opt.files import transaction as writing_files
from tests.files.small_models import WEIGHT, message, proto, save, save_external


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


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, model: ir.Model) -> None:
    """Not even by force: for root, /dev/null is a name like any other."""
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    cause = message(lambda: model_io.write_model(model, pipe, force=True), pipe)
    assert "is no regular file" in cause
    assert pipe.is_fifo()


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


def test_folder_that_may_not_be_looked_at(model: ir.Model, tmp_path: Path) -> None:
    """It is there, for all that is known: nobody is told to make it."""
    locked = tmp_path / "locked"
    out = locked / "inner" / "out.onnx"
    out.parent.mkdir(parents=True)
    locked.chmod(0)
    try:
        with unprivileged():
            written = message(lambda: model_io.write_model(model, out), out)
            cleared = message(lambda: model_io.clear_up(out), out)
    finally:
        locked.chmod(0o700)
    assert "ermission" in written
    assert "ermission" in cleared
    assert outputs(out.parent) == []


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
    root = Path(__file__).parents[2]
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
