"""An input's hash is made of the bytes that are copied, whatever order and holes they come in."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.errors import InputError
from mla_opt.files import hashed
from mla_opt.files.model_io import model_files, read_model, sha256, write_hashed, write_model
from mla_opt.files.read_once import ReadOnce, sha256_along
from mla_opt.files.writing import INLINE_LIMIT

KB = 1 << 10
Range = tuple[str, int, int]
"""Of a tensor: its file, where it starts, and its bytes."""

LAYOUTS: dict[str, tuple[dict[str, int], list[Range]]] = {
    "in order": ({"a": 8 * KB}, [("a", 0, 4 * KB), ("a", 4 * KB, 4 * KB)]),
    "out of order": ({"a": 8 * KB}, [("a", 6 * KB, 2 * KB), ("a", 0, KB), ("a", KB, 5 * KB)]),
    "a tensor twice": ({"a": 8 * KB}, [("a", 0, 4 * KB), ("a", 4 * KB, 4 * KB), ("a", 0, 4 * KB)]),
    "overlapping": ({"a": 8 * KB}, [("a", 0, 5 * KB), ("a", 2 * KB, 2 * KB), ("a", KB, 7 * KB)]),
    "unused bytes": ({"a": 9 * KB}, [("a", KB, 2 * KB), ("a", 4 * KB, KB), ("a", 7 * KB, KB)]),
    "two files": ({"a": 4 * KB, "b": 5 * KB}, [("b", KB, 4 * KB), ("a", 0, 4 * KB)]),
    # As texts, "a.x/w" comes before "a/w".
    "folders": ({"a/w": 4 * KB, "a.x/w": 4 * KB}, [("a.x/w", 0, 4 * KB), ("a/w", 0, 4 * KB)]),
    "only small ones": ({"a": 2 * KB}, [("a", 5, 100), ("a", 300, 9)]),
    "pieces": ({"a": 3 * KB * KB + 70}, [("a", 5, 2 * KB * KB), ("a", 2 * KB * KB + 9, KB * KB)]),
    "inside": ({}, []),
}


def content(name: str, size: int) -> bytes:
    """Bytes that tell files and places apart."""
    return np.random.default_rng(len(name) + size).bytes(size)


def model_of(folder: Path, files: dict[str, int], ranges: Sequence[Range]) -> Path:
    """Write a model whose tensors are those ranges of those files, and one inside."""
    for name, size in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content(name, size))
    stored: list[ir.TensorProtocol] = [ir.tensor(np.arange(2000, dtype=np.float32), name="inside")]
    stored += [
        ir.ExternalTensor(
            name, start, size, ir.DataType.UINT8, shape=ir.Shape([size]), name=f"t{place}",
            base_dir=str(folder),
        )
        for place, (name, start, size) in enumerate(ranges)
    ]  # fmt: skip
    values = [ir.Value(name=each.name, const_value=each) for each in stored]
    for value, tensor in zip(values, stored):
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    node = ir.node("Identity", [values[0]])
    node.outputs[0].name = "y"
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 18})
    ir.save(ir.Model(graph, ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def digest(files: Sequence[Path]) -> str:
    """As `cat FILES | sha256sum` has it."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.fixture(params=LAYOUTS)
def model(request: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return model_of(folder, *LAYOUTS[request.param])


@pytest.mark.parametrize("share", [False, True])
def test_both_hashes_are_those_of_the_files(model: Path, share: bool) -> None:
    read = read_model(model)
    files = model_files(model, read)
    new = ir.tensor(np.arange(3000, dtype=np.float32), name="new")
    read.graph.register_initializer(ir.Value(name="new", const_value=new))
    with ReadOnce(files) as source:
        out = model.with_name("out.onnx")
        written = write_hashed(read, out, inputs=files, share=share, source=source)
        assert source.hexdigest() == digest(files)
    assert written.sha256 == digest(written.files)
    large = any(
        isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes >= KB
        for value in read.graph.initializers.values()
    )
    assert bool({*written.files} & {*files}) == (share and large)
    again = read_model(out).graph.initializers
    for name, value in read.graph.initializers.items():
        before, after = value.const_value, again[name].const_value
        assert before is not None
        assert after is not None
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("layout", ["in order", "out of order", "unused bytes", "two files"])
@pytest.mark.parametrize("share", [False, True])
def test_each_byte_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, share: bool
) -> None:
    """What a copy reads is not read for the hash; what both models share is read for both."""
    model = model_of(tmp_path, *LAYOUTS[layout])
    files = model_files(model, read_model(model))
    counts = {str(file): bytearray(file.stat().st_size) for file in files}
    counted(monkeypatch, counts)
    with ReadOnce(files) as source:
        write_hashed(
            read_model(model), tmp_path / "out.onnx", inputs=files, share=share, source=source
        )
        source.hexdigest()
    assert all(set(count) == {1} for count in counts.values())


def counted(monkeypatch: pytest.MonkeyPatch, counts: dict[str, bytearray]) -> None:
    """Count how often each byte is read, to be copied or to be hashed."""

    def count(file: str, start: int, size: int) -> None:
        if file in counts:
            for place in range(start, start + size):
                counts[file][place] += 1

    def pieces(file: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        for piece in original(file, start, end):
            count(str(file), start, len(piece))
            start += len(piece)
            yield piece

    def tofile(tensor: ir.ExternalTensor, out: Any) -> None:
        count(tensor.path, tensor.offset or 0, tensor.nbytes)
        copied(tensor, out)

    original, copied = hashed.pieces, ir.ExternalTensor.tofile
    monkeypatch.setattr(hashed, "pieces", pieces)
    monkeypatch.setattr("mla_opt.files.read_once.pieces", pieces)
    monkeypatch.setattr(ir.ExternalTensor, "tofile", tofile)


class Sink:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, content: bytes | memoryview) -> int:
        self.content += content
        return len(content)


@pytest.mark.parametrize("seed", range(8))
def test_ranges_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(hashed, "_CHUNK", 97)
    monkeypatch.setattr(hashed, "_AHEAD", 200)
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(content(str(seed), draw.randrange(1, 1000)))
    sink, expected = Sink(), b""
    with ReadOnce(files) as source:
        for _ in range(draw.randrange(12)):
            file = draw.choice(files)
            start, end = sorted(draw.choices(range(file.stat().st_size + 1), k=2))
            out = source.along(file, start, sink)
            expected += file.read_bytes()[start:end]
            for at in range(start, end, 60):
                out.write(file.read_bytes()[at : min(at + 60, end)])
        assert source.hexdigest() == digest(files)
    assert sink.content == expected


def test_a_buffer_that_is_read_into_again(tmp_path: Path) -> None:
    """The hash is of what was passed on, not of what stands there by then."""
    files = [tmp_path / "m", tmp_path / "a"]
    for file in files:
        file.write_bytes(content(file.name, 64 * KB))
    buffer = bytearray(KB)
    with ReadOnce(files) as source, files[1].open("rb") as stream:
        out = source.along(files[1], 0, Sink())
        while stream.readinto(buffer):
            out.write(memoryview(buffer))
        assert source.hexdigest() == digest(files)


def test_other_files_and_other_names(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(content(file.name, KB))
    (tmp_path / "link").symlink_to("b")
    sink = Sink()
    with ReadOnce(files[:2]) as source:
        assert source.along(files[2], 0, sink) is sink
        assert source.along(tmp_path / "link", 0, sink) is not sink
        assert sha256_along(files, source) == digest(files)
        assert source.hexdigest() == digest(files[:2])


def test_what_is_not_hashed_is_copied_by_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, original = [], os.copy_file_range

    def copy(*arguments: Any, **named: Any) -> int:
        copied.append(original(*arguments, **named))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", copy)
    model = model_of(tmp_path, *LAYOUTS["unused bytes"])
    _, data = write_model(read_model(model), tmp_path / "out.onnx", inputs=[model])
    assert sum(copied) == 4 * KB
    source = (tmp_path / "a").read_bytes()
    written = data.read_bytes()
    assert [written[place : place + size] for place, size in ((0, 2 * KB), (4 * KB, KB))] == [
        source[KB : 3 * KB],
        source[4 * KB : 5 * KB],
    ]


# Failures.


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def failed(model: Path, limit: int = INLINE_LIMIT) -> str:
    """Write, fail; the message, after a look at what is left."""
    before, threads = left(model.parent), threading.active_count()
    read = read_model(model)
    with ReadOnce(model_files(model, read)) as source, pytest.raises(InputError) as info:
        write_hashed(read, model.with_name("out.onnx"), inline_limit=limit, source=source)
    assert left(model.parent) == before
    assert threading.active_count() == threads
    return str(info.value)


def test_a_full_disk_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, original, calls = model_of(tmp_path, *LAYOUTS["pieces"]), hashed.HashedStream.write, []

    def write(stream: Any, piece: Any) -> int:
        calls.append(len(piece))
        if sum(calls) > 2 * KB * KB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(stream, piece)

    monkeypatch.setattr(hashed.HashedStream, "write", write)
    assert "cannot be written: No space left" in failed(model)


@pytest.mark.parametrize("unused", [False, True])
def test_a_source_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused: bool
) -> None:
    """Told before anything appears, even where it is a part that nobody copies."""
    model = model_of(tmp_path, *LAYOUTS["unused bytes" if unused else "in order"])
    original = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "a" and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    assert failed(model) == f"{tmp_path / 'a'}: cannot be read: Input/output error"


def test_a_source_that_is_cut_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tmp_path, *LAYOUTS["in order"])
    read, files = read_model(model), model_files(model, read_model(model))
    before = left(tmp_path)
    (tmp_path / "a").write_bytes(content("a", 6 * KB))
    with (
        ReadOnce(files) as source,
        pytest.raises(InputError, match=r"a: cannot be read: .*shorter"),
    ):
        write_hashed(read, tmp_path / "out.onnx", source=source)
    assert left(tmp_path) == before
    (tmp_path / "a").unlink()
    with ReadOnce(files) as source, pytest.raises(InputError, match="cannot be read: No such file"):
        write_hashed(read, tmp_path / "out.onnx", source=source)
    assert left(tmp_path) == before[1:]


def test_what_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """A run that fails does not read the rest of a large file first."""
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(1 << 42)  # a hole: reading it takes an hour
    (tmp_path / "m").write_bytes(b"model")
    with ReadOnce([tmp_path / "m", file]) as source:
        source.along(file, 1 << 41, Sink())


def test_sha256_of_files_one_after_the_other(model: Path) -> None:
    files = model_files(model, read_model(model))
    assert sha256(files) == digest(files)
