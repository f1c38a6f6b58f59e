"""Read an ONNX model from a file that may be damaged or hostile.

Every claim that the file makes about sizes and other files is checked before memory is spent on it:
external data must lie in the model's own folder and be as long as the shapes say. Initializers
stay on disk and are mapped when they are used.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mla_opt.errors import InputError
from mla_opt.files.order import bodies, put_in_order

# Opset 13 still has Softmax and friends in flux; no exporter of an MLA model ever wrote one.
MIN_OPSET = 14
_MIN_IR_VERSION = 3
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
_TYPED_FIELDS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.BOOL: "int32_data",
    onnx.TensorProto.FLOAT16: "int32_data",
    onnx.TensorProto.BFLOAT16: "int32_data",
}


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
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    folder = path.absolute().parent
    for tensor in _tensors(model):
        _check_tensor(path, folder, tensor)
    _load_attribute_tensors(model)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return the model of a message, its nodes in order.

    Raises:
        InputError: the message is malformed, or its nodes have no order.
    """
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        # The deserializer raises many types on malformed input, none of them its own.
        raise InputError(f"is malformed: {_root_cause(error)}; export it again") from error
    put_in_order(model)
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
    paths = {Path(t.path) for t in _tensors(model) if isinstance(t, ir.ExternalTensor)}
    return tuple(sorted(paths))


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
    proto = onnx.ModelProto()
    # Mapped, not read: the parser copies, so reading would hold the weights twice.
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        try:
            proto.ParseFromString(view)
        except DecodeError as error:
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


# Tensors: those inside the file and those beside it.


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, attribute in _tensor_attributes(model):
        yield from _attribute_tensors(attribute)


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    kinds = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            for attribute in node.attributes.values():
                if attribute.type in kinds and not attribute.is_ref():
                    yield node, attribute


def _attribute_tensors(attribute: ir.Attr) -> tuple[ir.TensorProtocol, ...]:
    if attribute.type == ir.AttributeType.TENSORS:
        return tuple(attribute.as_tensors())
    return (attribute.as_tensor(),)


def _check_tensor(path: Path, folder: Path, tensor: ir.TensorProtocol) -> None:
    where = f"{path}: tensor {tensor.name!r}"
    if any(not isinstance(dim, int) or dim < 0 for dim in tensor.shape):
        raise InputError(f"{where} has the impossible shape {tensor.shape}; export it again")
    if isinstance(tensor, ir.ExternalTensor):
        tensor.base_dir = str(folder)
        _check_external(where, folder, tensor)
    elif isinstance(tensor.raw, onnx.TensorProto):
        _check_inline(where, tensor, tensor.raw)


def _check_inline(where: str, tensor: ir.TensorProtocol, proto: onnx.TensorProto) -> None:
    if proto.HasField("raw_data"):
        held, needed, unit = len(proto.raw_data), tensor.nbytes, "bytes"
    elif proto.data_type in _TYPED_FIELDS:
        held, needed = len(getattr(proto, _TYPED_FIELDS[proto.data_type])), tensor.size
        unit = "elements"
    else:
        return
    if held != needed:
        raise InputError(f"{where} holds {held} {unit}, its shape needs {needed}; export it again")


def _check_external(where: str, folder: Path, tensor: ir.ExternalTensor) -> None:
    file = _contained(where, folder, str(tensor.location))
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or (length is not None and length != tensor.nbytes):
        raise InputError(
            f"{where} claims {length} bytes at offset {offset}, its shape needs {tensor.nbytes}; "
            "export the model again"
        )
    _check_extent(where, file, offset + tensor.nbytes)


def _contained(where: str, folder: Path, location: str) -> Path:
    """Return the file at ``location`` if it is in ``folder``, links followed."""
    if not location or "\0" in location or Path(location).is_absolute():
        raise InputError(f"{where} has the external data path {location!r}, which is not relative")
    file = folder / location
    if ".." in Path(location).parts:
        raise InputError(f"{where} has external data outside the model's folder: {location!r}")
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"{where} has external data behind a link out of the model's folder: {location!r}; "
            "copy the file itself into the folder"
        )
    return file


def _check_extent(where: str, file: Path, needed: int) -> None:
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(
            f"{where} needs the external data file {file.name!r}: {error.strerror}; "
            "copy it next to the model"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where} has external data in {file.name!r}, which is no regular file")
    if status.st_nlink > 1:
        raise InputError(
            f"{where} has external data in {file.name!r}, which has several hard links and could "
            "be a file from elsewhere; copy it"
        )
    if status.st_size < needed:
        raise InputError(
            f"{where} needs {needed} bytes of {file.name!r}, which has {status.st_size}: "
            "truncated; copy it again"
        )


def _load_attribute_tensors(model: ir.Model) -> None:
    """Bring external tensors of attributes into memory: only initializers are written external."""
    for node, attribute in list(_tensor_attributes(model)):
        tensors = _attribute_tensors(attribute)
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
            loaded = [_in_memory(tensor) for tensor in tensors]
            node.attributes[attribute.name] = _tensor_attribute(attribute, loaded)


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)


def _tensor_attribute(attribute: ir.Attr, tensors: list[ir.TensorProtocol]) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSORS:
        return ir.AttrTensors(attribute.name, tensors)
    return ir.AttrTensor(attribute.name, tensors[0])
