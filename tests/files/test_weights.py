"""The bytes of stored tensors: mapped while they are read, hashed as they are written, shared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mla_opt.errors import InputError
from mla_opt.files.mapped import MappedTensor
from mla_opt.files.model_io import model_files, read_model, sha256, write_hashed, write_model
from tests.files.small_models import WEIGHT, message, save_external

LARGE = 1 << 17


def tensor(path: Path, dtype: ir.DataType = ir.DataType.UINT8, count: int = LARGE) -> MappedTensor:
    """A tensor behind 4096 other bytes of a file."""
    path.write_bytes(bytes(4096) + np.arange(count).astype(np.uint8).tobytes())
    nbytes = int(count * dtype.itemsize)
    given = ir.ExternalTensor(
        path.name, 4096, nbytes, dtype, shape=ir.Shape([count]), name="t", base_dir=str(path.parent)
    )
    return MappedTensor.of(given)


def mappings(path: Path) -> int:
    """How often a file is mapped into this process."""
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_file_is_mapped_only_while_somebody_looks_at_it(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    mapped = tensor(path)
    content = mapped.numpy()
    np.testing.assert_array_equal(content, np.arange(LARGE).astype(np.uint8))
    assert mappings(path) == 1
    view = content[::2]
    del content
    assert mappings(path) == 1
    del view
    assert mappings(path) == 0
    assert mapped.tobytes() == path.read_bytes()[4096:]
    assert mappings(path) == 0


def test_small_tensors_are_read_once(tmp_path: Path) -> None:
    mapped = tensor(tmp_path / "small.bin", count=100)
    assert mapped.numpy() is mapped.numpy()
    assert mappings(tmp_path / "small.bin") == 0


def test_packed_numbers_are_told_apart(tmp_path: Path) -> None:
    mapped = tensor(tmp_path / "packed.bin", ir.DataType.UINT4, 256)
    assert mapped.numpy()[:6].astype(int).tolist() == [0, 0, 1, 0, 2, 0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in a folder of its own, with its weight in another file."""
    folder = tmp_path / "models" / "one"
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    return save_external(folder / "m.onnx")


@pytest.mark.parametrize("limit", [0, 10**9])
def test_the_hash_of_what_is_written_is_that_of_the_files(model: Path, limit: int) -> None:
    read = read_model(model)
    if limit:  # inside the file
        read.graph.initializers["w"].const_value = ir.Tensor(WEIGHT, name="w")
    written = write_hashed(read, model.with_name("out.onnx"), inputs=[model], inline_limit=limit)
    assert len(written.files) == (1 if limit else 2)
    assert written.sha256 == sha256(written.files)


def test_files_are_read_from_front_to_end(tmp_path: Path) -> None:
    """Whatever order the initializers have; new tensors come behind those of files."""
    order = [3, 0, 2, 1]
    (tmp_path / "w.bin").write_bytes(b"".join(bytes([n]) * 1024 for n in range(4)))
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g")
    names = [f"w{n}" for n in order]
    for n, name in zip(order, names):
        stored = ir.ExternalTensor(
            "w.bin", 1024 * n, 1024, ir.DataType.UINT8, shape=ir.Shape([1024]), name=name,
            base_dir=str(tmp_path),
        )  # fmt: skip
        graph.initializers[name] = ir.Value(name=name, const_value=stored)
    new = ir.Tensor(np.full(1024, 9, np.uint8), name="new")
    graph.initializers["new"] = ir.Value(name="new", const_value=new)
    _, data = write_model(ir.Model(graph, ir_version=10), tmp_path / "out.onnx")
    assert [data.read_bytes()[place] for place in range(0, 5 * 4096, 4096)] == [0, 1, 2, 3, 9]


def run(path: Path) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 3, 20), np.float32)})[0]


@pytest.mark.parametrize("folder", [".", ".."])
def test_shared_files_are_referred_to_from_their_folder_and_above(model: Path, folder: str) -> None:
    out = Path(os.path.normpath(model.parent / folder / "out.onnx"))
    written = write_hashed(read_model(model), out, inputs=[model], share=True)
    assert written.files == (out, model.with_name("w.bin"))
    assert written.sha256 == sha256(written.files)
    assert not out.with_name("out.onnx.data").exists()
    np.testing.assert_array_equal(run(out), run(model))
    onnx.checker.check_model(str(out))
    assert read_model(out).graph.initializers["w"].const_value is not None


def test_what_is_new_has_a_file_beside_the_shared_one(model: Path) -> None:
    read = read_model(model)
    double = ir.Value(name="w2", const_value=ir.Tensor(WEIGHT * 2, name="w2"))
    read.graph.register_initializer(double)
    read.graph.node(0).replace_input_with(1, double)
    other = ir.node("Identity", [read.graph.initializers["w"]], outputs=[ir.Value(name="copy")])
    read.graph.append(other)
    read.graph.outputs.append(other.outputs[0])
    out = model.with_name("out.onnx")
    written = write_hashed(read, out, inputs=[model], share=True)
    own, shared = model.with_name("out.onnx.data"), model.with_name("w.bin")
    assert written.files == (out, own, shared)
    assert own.read_bytes() == (WEIGHT * 2).tobytes()
    np.testing.assert_allclose(run(out), 2 * (run(model) - 1) + 1)
    again = write_hashed(read_model(out), model.with_name("again.onnx"), inputs=[out], share=True)
    assert again.files == (model.with_name("again.onnx"), own, shared)


def test_the_hash_is_the_readers_wherever_the_writer_stands(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash goes by the order of the data files, which relative names must not change."""
    monkeypatch.chdir(model.parent)
    read = read_model(model)
    double = ir.Value(name="w2", const_value=ir.Tensor(WEIGHT * 2, name="w2"))
    read.graph.register_initializer(double)
    for out in (Path("a.onnx"), Path("z.onnx"), model.with_name("q.onnx")):
        written = write_hashed(read, out, inputs=[model], share=True)
        assert len(written.files) == 3
        assert written.sha256 == sha256(model_files(out, read_model(out)))


def below(model: Path) -> Path:
    folder = model.parent / "below"
    folder.mkdir()
    return folder / "out.onnx"


def beside(model: Path) -> Path:
    folder = model.parent.with_name("two")
    folder.mkdir()
    return folder / "out.onnx"


@pytest.mark.parametrize("place", [below, beside])
def test_elsewhere_sharing_is_refused(model: Path, place: Callable[[Path], Path]) -> None:
    out = place(model)
    write = lambda: write_hashed(read_model(model), out, share=True)  # noqa: E731
    cause = message(write, out)
    assert f"cannot share {model.with_name('w.bin')}" in cause
    assert f"write to {str(model.parent)!r}" in cause
    assert list(out.parent.iterdir()) == []


def test_a_shared_file_is_never_replaced(model: Path) -> None:
    out = model.with_name("w")
    model.with_name("w.data").write_bytes(WEIGHT.tobytes())
    named = read_model(save_external(model.with_name("m2.onnx"), "w.data"))
    with pytest.raises(InputError, match="is read as an input"):
        write_hashed(named, out, force=True, share=True)
    digest = hashlib.sha256(model.with_name("w.data").read_bytes()).hexdigest()
    assert digest == hashlib.sha256(WEIGHT.tobytes()).hexdigest()


def made_of(model: Path) -> dict[Path, bytes]:
    """The content of the files of a model."""
    return {file: file.read_bytes() for file in model_files(model, read_model(model))}


def new_weight(model: Path, factor: float) -> ir.Model:
    """The model with a weight of its own besides."""
    read = read_model(model)
    name = f"w_{factor}"
    own = ir.Value(name=name, const_value=ir.Tensor(WEIGHT * np.float32(factor), name=name))
    read.graph.register_initializer(own)
    read.graph.node(0).replace_input_with(1, own)
    return read


@pytest.mark.parametrize("share", [True, False])
def test_force_over_a_result_that_shares(model: Path, share: bool) -> None:
    """The result's own data changes hands; what it shares is the input's, and stays."""
    out = model.with_name("out.onnx")
    write_hashed(new_weight(model, 2), out, inputs=[model], share=True)
    before = made_of(model)
    written = write_hashed(new_weight(model, 3), out, force=True, inputs=[model], share=share)
    assert made_of(model) == before
    np.testing.assert_allclose(run(out), 3 * (run(model) - 1) + 1, rtol=1e-5)
    assert model.with_name("out.onnx.1.data") in written.files
    assert not model.with_name("out.onnx.data").exists()


def test_a_result_that_shares_is_an_input_with_all_its_files(model: Path) -> None:
    """What became of a model that shares goes neither over it nor over what it shares."""
    shared = model.with_name("shared.onnx")
    write_hashed(new_weight(model, 2), shared, inputs=[model], share=True)
    before = made_of(shared)
    assert len(before) == 3
    for name in ("shared.onnx", "w.bin", "shared.onnx.data"):
        for share in (True, False):
            again, place = new_weight(shared, 3), model.with_name(name)
            with pytest.raises(InputError, match="is read as an input"):
                write_hashed(again, place, force=True, inputs=[shared], share=share)
    assert made_of(shared) == before
    # The original itself is no part of it; its data file is.
    write_hashed(new_weight(shared, 3), model, force=True, inputs=[shared], share=False)
    assert made_of(shared) == before


def test_a_data_file_of_the_same_name_in_a_folder_below_is_another(model: Path) -> None:
    """A result above the folder of its data, which is named as its own would be."""
    data = model.with_name("out.onnx.data")
    model.with_name("w.bin").rename(data)
    named = save_external(model.with_name("m2.onnx"), data.name)
    out = model.parent.parent / "out.onnx"
    write_hashed(read_model(named), out, inputs=[named], share=True)
    beside = out.with_name("out.onnx.data")
    beside.write_text("somebody else's")
    inside = ir.from_proto(onnx.load(named))
    write_model(inside, out, force=True)
    assert (beside.read_text(), data.read_bytes()) == ("somebody else's", WEIGHT.tobytes())
