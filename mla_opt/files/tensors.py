"""The tensors of a model that may be damaged or hostile: those inside the file, those beside it.

Every claim about sizes and other files is checked before memory is spent on it. External data lies
in the model's own folder, or where the Hugging Face cache keeps it: a snapshot is a folder of links
to the blobs of its repository.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import onnx
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.files.links import leads_out
from mla_opt.files.mapped import MappedTensor
from mla_opt.files.order import bodies

# The field that holds the elements of a type, and how many of its entries an element takes.
_TYPED_FIELDS: dict[int, tuple[str, float]] = {
    onnx.TensorProto.FLOAT: ("float_data", 1),
    onnx.TensorProto.DOUBLE: ("double_data", 1),
    onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1),
    onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
    **dict.fromkeys(
        (
            onnx.TensorProto.BOOL,
            onnx.TensorProto.INT8,
            onnx.TensorProto.UINT8,
            onnx.TensorProto.INT16,
            onnx.TensorProto.UINT16,
            onnx.TensorProto.INT32,
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.BFLOAT16,
            onnx.TensorProto.FLOAT8E4M3FN,
            onnx.TensorProto.FLOAT8E4M3FNUZ,
            onnx.TensorProto.FLOAT8E5M2,
            onnx.TensorProto.FLOAT8E5M2FNUZ,
        ),
        ("int32_data", 1),
    ),
}

Attributes = MutableMapping[str, ir.Attr]


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every stored tensor of a model: initializers, attributes, and defaults of functions."""
    for graph in (*model.graphs(), *_graphs_of_functions(model)):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, attribute in _tensor_attributes(model):
        yield from _attribute_tensors(attribute)


def check_inside(model: ir.Model) -> None:
    """Check types and shapes of all tensors, and that those in the message are as long as they say.

    Raises:
        InputError: one is not; the message names it.
    """
    for tensor in tensors(model):
        where = f"tensor {tensor.name!r}"
        if tensor.dtype == ir.DataType.UNDEFINED:
            raise InputError(f"{where} has no element type; export it again")
        if any(not isinstance(dim, int) or dim < 0 for dim in tensor.shape):
            raise InputError(f"{where} has the impossible shape {tensor.shape}; export it again")
        if isinstance(tensor.raw, onnx.TensorProto) and not isinstance(tensor, ir.ExternalTensor):
            _check_inline(where, tensor, tensor.raw)


def find_beside(model: ir.Model, folder: Path) -> None:
    """Find external data in ``folder``, and check that it is as long as the shapes say.

    Tensors of attributes and functions are brought into memory: only initializers of the graph and
    its branches are written external.

    Raises:
        InputError: it is not there, or not whole; the message names the tensor and the file.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _found(value.const_value, folder)
    for graph in _graphs_of_functions(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _loaded(value.const_value, folder)
    for attributes, attribute in list(_tensor_attributes(model)):
        held = _attribute_tensors(attribute)
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in held):
            loaded = [_loaded(tensor, folder) for tensor in held]
            attributes[attribute.name] = _tensor_attribute(attribute, loaded)


def _graphs_of_functions(model: ir.Model) -> Iterator[ir.Graph]:
    """The branches in bodies of functions."""
    for function in model.functions.values():
        yield from function.subgraphs()


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[Attributes, ir.Attr]]:
    for attributes in _all_attributes(model):
        for attribute in attributes.values():
            kinds = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
            if attribute.type in kinds and not attribute.is_ref() and attribute.value is not None:
                yield attributes, attribute


def _all_attributes(model: ir.Model) -> Iterator[Attributes]:
    for body in bodies(model):
        if isinstance(body, ir.Function):
            yield body.attributes
        for node in ir.traversal.RecursiveGraphIterator(body):
            yield node.attributes


def _attribute_tensors(attribute: ir.Attr) -> tuple[ir.TensorProtocol, ...]:
    # Not as_tensor(): it asks a tensor of no known type for its bytes, which has none.
    value = attribute.value
    return tuple(value) if attribute.type == ir.AttributeType.TENSORS else (value,)


def _loaded(tensor: ir.TensorProtocol, folder: Path) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    found = _found(tensor, folder)
    return ir.Tensor(found.numpy().copy(), name=tensor.name, dtype=tensor.dtype)


def _tensor_attribute(attribute: ir.Attr, held: list[ir.TensorProtocol]) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSORS:
        return ir.AttrTensors(attribute.name, held)
    return ir.AttrTensor(attribute.name, held[0])


def _check_inline(where: str, tensor: ir.TensorProtocol, proto: onnx.TensorProto) -> None:
    if proto.HasField("raw_data"):
        held, needed, unit = len(proto.raw_data), tensor.nbytes, "bytes"
    elif proto.data_type in _TYPED_FIELDS:
        field, entries = _TYPED_FIELDS[proto.data_type]
        held, needed, unit = len(getattr(proto, field)), int(entries * tensor.size), "elements"
    else:  # several elements in one entry
        held, needed, unit = 4 * len(proto.int32_data), tensor.nbytes, "bytes"
        if held > needed:
            return
    if held != needed:
        raise InputError(f"{where} holds {held} {unit}, its shape needs {needed}; export it again")


def _found(tensor: ir.ExternalTensor, folder: Path) -> MappedTensor:
    """The tensor where its file really is."""
    where = f"tensor {tensor.name!r}"
    if tensor.dtype == ir.DataType.STRING:
        raise InputError(f"{where} holds texts in another file; export them inside the model")
    file = _contained(where, folder, str(tensor.location))
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or (length is not None and length != tensor.nbytes):
        raise InputError(
            f"{where} claims {length} bytes at offset {offset}, its shape needs {tensor.nbytes}; "
            "export the model again"
        )
    _check_extent(where, file, offset + tensor.nbytes)
    tensor.base_dir = str(folder)
    real = Path(os.path.realpath(file))
    if real.is_relative_to(os.path.realpath(folder)):
        return MappedTensor.of(tensor)
    # onnx_ir follows no link out of the folder that it is told.
    return MappedTensor(
        real.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=str(real.parent),
    )


def _contained(where: str, folder: Path, location: str) -> Path:
    """Return the file at ``location`` if it is in ``folder``, links followed."""
    if not location or "\0" in location or Path(location).is_absolute():
        raise InputError(f"{where} has the external data path {location!r}, which is not relative")
    if location.endswith(("/", os.sep)):
        raise InputError(f"{where} has the external data path {location!r}, which is a folder's")
    file = folder / location
    if ".." in Path(location).parts:
        raise InputError(f"{where} has external data outside the model's folder: {location!r}")
    if leads_out(file, folder):
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
