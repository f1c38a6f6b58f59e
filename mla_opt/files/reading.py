"""Read an ONNX model from a file that may be damaged or hostile.

Every claim that the file makes is checked before anything is built on it, one kind a module: its
tensors, its text, its operators, what running it takes. Initializers stay on disk and are mapped
when they are used.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mla_opt.errors import InputError, require_memory
from mla_opt.files.calls import check_calls, check_loops
from mla_opt.files.order import put_in_order
from mla_opt.files.room import require_room
from mla_opt.files.schemas import check_nodes
from mla_opt.files.tensors import check_inside, find_beside, tensors
from mla_opt.files.text import check_text

# Opset 13 still has Softmax and friends in flux; no exporter of an MLA model ever wrote one.
MIN_OPSET = 14
_MIN_IR_VERSION = 3
# Times the file: the mapping, what the parser makes of it in blocks that double, and a copy that is
# written. With less the parser says that the file is damaged, or the process ends.
_ROOM = 4
_PROTOBUF_LIMIT = 2**31 - 1
_SNIFFED = 64

# First bytes, and what a file that begins with them is.
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (
        b"PK\x03\x04",
        "a zip archive: a PyTorch checkpoint or program; optimize, inspect and verify take programs"
        " of torch.export, named .pt2; for all else export it to ONNX first",
    ),
    (b"\x89PNG", "a PNG image"),
    (b"\x80", "a Python pickle; export the model to ONNX first"),
    (b"GGUF", "a GGUF model; export the original model to ONNX"),
    (b"{", "JSON or safetensors; give the .onnx file"),
)


def read_model(path: str | Path) -> ir.Model:
    """Read a model; initializers in external files are mapped lazily, nodes are put in order.

    Raises:
        InputError: one line with the file, the cause and what to do, for anything unusable.
    """
    path = Path(path)
    proto = _parse(path)
    _check_header(path, proto)
    try:
        model = from_proto(proto)
        find_beside(model, path.absolute().parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return the model of a message, its nodes in order.

    Raises:
        InputError: the message is malformed, its nodes have no order, or running it has no end.
    """
    check_text(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        require_memory(error)
        # The deserializer raises many types on malformed input, none of them its own.
        raise InputError(f"is malformed: {_root_cause(error)}; export it again") from error
    check_inside(model)
    put_in_order(model)
    check_nodes(model)
    check_calls(model)
    check_loops(model)
    return model


def check_input(path: Path) -> int:
    """Check, without reading it, that ``path`` is a file with something in it; returns its bytes.

    Raises:
        InputError: there is no such file, or it is none that could be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a folder; give the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is not a regular file; give an .onnx file")
    if status.st_size == 0:
        raise InputError(f"{path}: is empty; export or copy the model again")
    return status.st_size


def external_files(model: ir.Model) -> tuple[Path, ...]:
    """Return the external data files that a model refers to, by name, each once."""
    paths = {Path(t.path) for t in tensors(model) if isinstance(t, ir.ExternalTensor)}
    return tuple(sorted(paths))


def referred_files(path: Path) -> frozenset[str]:
    """Return the data files that the model at ``path`` refers to, as seen from it; or none.

    Raises:
        InputError: there is a file, and it cannot be read.
    """
    if not os.path.lexists(path):
        return frozenset()
    proto = _parse(path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        require_memory(error)
        raise InputError(f"{path}: is malformed: {_root_cause(error)}") from error
    found = (tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor))
    return frozenset(os.path.normpath(tensor.location) for tensor in found)


# The file and its protobuf.


def _parse(path: Path) -> onnx.ModelProto:
    size = check_input(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(_SNIFFED)
            return _parse_mapped(path, stream.fileno(), size, head)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse_mapped(path: Path, descriptor: int, size: int, head: bytes) -> onnx.ModelProto:
    if size > _PROTOBUF_LIMIT:
        raise InputError(f"{path}: is over 2 GiB, more than protobuf allows; use external data")
    require_room(_ROOM * size, f"{path}: reading it")
    proto = onnx.ModelProto()
    # Mapped, not read: the parser copies, so reading would hold the weights twice.
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        try:
            proto.ParseFromString(view)
        except DecodeError as error:
            require_memory(error)
            raise InputError(f"{path}: {_why_undecodable(head)}") from error
    return proto


def _why_undecodable(head: bytes) -> str:
    for start, what in _LOOKS_LIKE:
        if head.startswith(start):
            return f"is not an ONNX model but {what}"
    # An ONNX file begins with field 1, the IR version, which is a small number.
    if len(head) > 1 and head[0] == 0x08 and head[1] < 0x40:
        return "is truncated or damaged; export or copy the model again"
    return "is not an ONNX model; give a file in ONNX's binary format"


def _check_header(path: Path, proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph") or not proto.HasField("ir_version"):
        raise InputError(f"{path}: is not a whole ONNX model (no graph); export it again")
    if not _MIN_IR_VERSION <= proto.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"{path}: IR version {proto.ir_version} is unknown, {_MIN_IR_VERSION} to "
            f"{onnx.IR_VERSION} are; upgrade the onnx package or export for an older version"
        )
    _check_opset(path, proto)
    if not proto.graph.output:
        raise InputError(f"{path}: the graph has no outputs; export the model again")
    if proto.graph.sparse_initializer or proto.training_info:
        what = "training information" if proto.training_info else "sparse initializers"
        raise InputError(f"{path}: has {what}, which mla-opt would lose; export without")


def _check_opset(path: Path, proto: onnx.ModelProto) -> None:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise InputError(f"{path}: imports no ONNX opset, so is cut short or damaged; export again")
    if max(versions) < MIN_OPSET:
        raise InputError(
            f"{path}: opset {max(versions)} is too old, {MIN_OPSET} is the oldest; "
            "export with a newer one or use onnx.version_converter"
        )
    if max(versions) > newest:
        raise InputError(
            f"{path}: opset {max(versions)} is newer than the installed onnx knows ({newest}); "
            "upgrade the onnx package"
        )


def _root_cause(error: BaseException) -> str:
    # The deserializer wraps errors, and sometimes fails while it does: the first one tells.
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
