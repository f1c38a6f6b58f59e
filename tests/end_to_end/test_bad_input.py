"""Files that cannot be used and places that cannot be written: one line, exit 2, nothing left."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.end_to_end.command import PROGRAM, Done, command, environment, files
from tests.end_to_end.conftest import export_file
from tests.exports.controls import exported_control
from tests.exports.spec import ExportSpec

#: Those that read a model; all read it the same way.
COMMANDS = ("optimize", "inspect", "verify")
#: prctl option and capability, from the kernel's headers.
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def check_refused(done: Done, *words: str) -> None:
    """Exit 2, and a single line that has the words."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def check_refuses(path: Path, *words: str, commands: tuple[str, ...] = ("optimize",)) -> None:
    """The file is refused, named, and the folder left as it was."""
    before = files(path.parent)
    for name in commands:
        models = (path, path) if name == "verify" else (path,)
        check_refused(command(name, *models), str(path), *words)
    assert files(path.parent) == before


@pytest.fixture
def model(plain: Path) -> onnx.ModelProto:
    return onnx.load(plain)


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(plain, tmp_path / "model.onnx"))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 a checkpoint", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x00\x01 neither fish nor fowl", "not an ONNX model"),
    ],
)
def test_not_onnx(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    check_refuses(path, words)


def test_missing(tmp_path: Path) -> None:
    check_refuses(tmp_path / "model.onnx", "no such file", commands=COMMANDS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated(copy: Path, share: float) -> None:
    os.truncate(copy, int(copy.stat().st_size * share))
    check_refuses(copy, "damaged", commands=COMMANDS if share == 0.5 else ("optimize",))


def with_external_data(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin")
    assert (folder / "weights.bin").stat().st_size > 100_000
    return path


def test_external_data_missing(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = with_external_data(model, tmp_path)
    (tmp_path / "weights.bin").unlink()
    check_refuses(path, "weights.bin")


def test_external_data_cut_short(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = with_external_data(model, tmp_path)
    os.truncate(tmp_path / "weights.bin", 10_000)
    check_refuses(path, "weights.bin", "truncated")


@pytest.mark.parametrize("absolute", [True, False])
def test_external_data_elsewhere(model: onnx.ModelProto, tmp_path: Path, absolute: bool) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external_data(model, folder)
    outside = (folder / "weights.bin").rename(tmp_path / "secret.bin")
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if absolute else "../secret.bin"
    check_refuses(saved(moved, path), "secret.bin")


def test_external_data_behind_a_link(model: onnx.ModelProto, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external_data(model, folder)
    (folder / "weights.bin").rename(tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    check_refuses(path, "weights.bin", "link")


def test_external_data_in_place_is_fine(model: onnx.ModelProto, tmp_path: Path) -> None:
    """The refusals above are about where the data is, not about its being external."""
    path = with_external_data(model, tmp_path)
    assert command("optimize", path, "--no-verify").returncode == 0
    written = files(tmp_path)
    assert set(written) == {"model.onnx", "weights.bin", "model.mla.onnx", "model.mla.onnx.data"}
    assert command("verify", path, tmp_path / "model.mla.onnx").returncode == 0


@pytest.mark.parametrize(("version", "word"), [(9, "too old"), (999, "newer")])
def test_opset(model: onnx.ModelProto, tmp_path: Path, version: int, word: str) -> None:
    model.opset_import[0].version = version
    check_refuses(saved(model, tmp_path / "model.onnx"), f"opset {version}", word)


def test_no_opset(model: onnx.ModelProto, tmp_path: Path) -> None:
    del model.opset_import[:]
    check_refuses(saved(model, tmp_path / "model.onnx"), "opset")


def custom(model: onnx.ModelProto, domain: str = "com.example") -> onnx.ModelProto:
    """The model with an operator on its logits that nobody knows."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "logits/raw"
    model.graph.node.append(
        onnx.helper.make_node("Sharpen", ["logits/raw"], ["logits"], domain=domain)
    )
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return model


def test_unknown_operator_cannot_be_verified(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(custom(model), tmp_path / "model.onnx")
    check_refused(command("optimize", path), str(path), "Sharpen")
    assert list(files(tmp_path)) == ["model.onnx"]


def test_unknown_operator_is_left_alone_unverified(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(custom(model), tmp_path / "model.onnx")
    done = command("optimize", path, "--no-verify")
    assert done.returncode == 0, done.stderr
    after = onnx.load(tmp_path / "model.mla.onnx")
    assert [node for node in after.graph.node if node.op_type == "Sharpen"] == [
        model.graph.node[-1]
    ]
    assert "com.example::Sharpen" in command("inspect", path).stdout


def fixed(model: onnx.ModelProto, **sizes: int) -> onnx.ModelProto:
    """The model with numbers for symbols, as `--fix-dim` tools make them."""
    values = [*model.graph.input, *model.graph.output]
    symbols = dict(zip(sizes, _symbols(model), strict=False))
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            for name, symbol in symbols.items():
                if dim.dim_param == symbol:
                    dim.dim_value = sizes[name]
    del model.graph.value_info[:]
    return model


def _symbols(model: onnx.ModelProto) -> list[str]:
    """Of batch, new tokens and past tokens."""
    shapes = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input}
    batch, query = (dim.dim_param for dim in shapes["input_ids"])
    return [batch, query, shapes["past.0.keys"][2].dim_param]


@pytest.mark.parametrize("sizes", [{"batch": 2}, {"batch": 1, "query": 1}])
def test_static_dims(model: onnx.ModelProto, tmp_path: Path, sizes: dict[str, int]) -> None:
    """Not bad at all: the fixed sizes are kept, and the proof keeps to them."""
    path = saved(fixed(model, **sizes), tmp_path / "model.onnx")
    done = command("optimize", path)
    assert done.returncode == 0, done.stderr
    before, after = onnx.load(path), onnx.load(tmp_path / "model.mla.onnx")
    assert list(after.graph.input) == list(before.graph.input)
    assert "2 latent attentions rewritten, verified" in done.stdout


def test_unrelated_models(plain: Path, tmp_path: Path) -> None:
    other = exported_control("bert")
    check_refused(command("verify", plain, other), "past.0.keys", "differ in their inputs")
    check_refused(command("verify", other, plain), "past.0.keys", "differ in their inputs")


def test_another_model_of_the_same_interface(plain: Path, tmp_path: Path) -> None:
    """Same names, other architecture: it runs, and is found to compute something else."""
    other = export_file(ExportSpec("deepseek_v3", exporter="torchscript"))
    spoiled = onnx.load(other)
    weight = next(each for each in spoiled.graph.initializer if list(each.dims) == [84, 97])
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.flip(array, 0).copy(), weight.name))
    done = command("verify", plain, saved(spoiled, tmp_path / "other.onnx"))
    assert done.returncode == 4
    assert done.stderr.startswith("error: verification failed: logits")


def obey_permissions() -> None:
    """Without this capability even root may not write where the permissions forbid it."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def test_folder_without_write_permission(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = Path(shutil.copy(plain, folder / "model.onnx"))
    folder.chmod(0o555)
    try:
        if not _is_protected(folder):
            pytest.skip("this user may write everywhere, and cannot give that up")
        done = command("optimize", path, preexec=obey_permissions)
        check_refused(done, str(folder), "ermission")
        report = command(
            "optimize", path, "-o", tmp_path / "out.onnx", "--report", folder / "r.json",
            preexec=obey_permissions,
        )  # fmt: skip
        check_refused(report, str(folder))
    finally:
        folder.chmod(0o755)
    assert list(files(tmp_path)) == ["folder/model.onnx"]


def _is_protected(folder: Path) -> bool:
    tried = subprocess.run(
        ["touch", str(folder / "probe")], preexec_fn=obey_permissions, capture_output=True
    )
    return tried.returncode != 0


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [100_000, 600_000])
def test_file_size_limit(copy: Path, size: int) -> None:
    """A quota: writing fails in the middle of the file."""
    done = command("optimize", copy, "--no-verify", preexec=limited(size))
    check_refused(done, "model.mla.onnx", "File too large")
    assert list(files(copy.parent)) == ["model.onnx"]


def test_full_disk(plain: Path, tmp_path: Path) -> None:
    """A real one: a file system in memory with room for half of the result."""
    size = plain.stat().st_size // 2
    script = f'mount -t tmpfs -o size={size} none "$0" && "$@"; status=$?; ls -A "$0"; exit $status'
    target = tmp_path / "disk"
    target.mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(target)]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody mount a file system of their own")
    arguments = ["optimize", str(plain), "--no-verify", "--quiet", "-o", str(target / "out.onnx")]
    done = subprocess.run(
        [*isolated, *PROGRAM, *arguments], env=environment(), capture_output=True, text=True
    )
    check_refused(done, "out.onnx", "No space left on device")
    assert done.stdout == "", "something was left on the disk"
