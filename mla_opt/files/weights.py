"""Where the stored tensors of a model go when it is written: into its data file, or its own.

Places are known before a byte is written, so that the model file, which tells them, is made first
and the data after it, each tensor when its turn comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeGuard

import numpy as np
import onnx_ir as ir

from mla_opt.aside import let_go
from mla_opt.errors import InputError
from mla_opt.files.hashed import Digest, HashedStream
from mla_opt.files.read_once import Out, ReadOnce
from mla_opt.files.sharing import location
from mla_opt.handles import Array

# Smaller tensors stay in the model file, where shape inference can see them.
_EXTERNAL_FROM = 1024
# A page, so that runtimes can map a tensor where it lies.
_ALIGNMENT = 4096
# Bytes of a tensor that are read and written at once.
_PIECE = 8 << 20
# Bytes after which the system is told to bring them to the disk.
_SENT = 32 << 20


class DataFile:
    """The data file of a model that is to be written at ``path``.

    With ``share`` it holds only what no file holds yet.
    """

    def __init__(self, model: ir.Model, path: Path, *, share: bool = False) -> None:
        self._model, self.path, self._share = model, path, share
        self._places: dict[object, int] = {}
        self._contents: list[tuple[int, ir.TensorProtocol]] = []
        end = 0
        for tensor in _in_order_of_files(_distinct(model)):
            if self._is_shared(tensor):
                continue
            start = end + -end % _ALIGNMENT
            self._places[_source(tensor)] = start
            self._contents.append((start, tensor))
            end = start + tensor.nbytes

    @contextlib.contextmanager
    def referred_to(self) -> Iterator[None]:
        """Let the model refer to the data file, inside the context."""
        original = list(_stored(self._model))
        try:
            for value, tensor in original:
                value.const_value = self._placed(tensor)
            yield
        finally:
            for value, tensor in original:
                value.const_value = tensor

    @property
    def is_empty(self) -> bool:
        """Whether it would hold nothing."""
        return not self._contents

    def shared(self) -> tuple[Path, ...]:
        """The files that the model refers to besides, by name."""
        tensors = _distinct(self._model)
        return tuple(sorted({Path(t.path) for t in tensors if self._is_shared(t)}))

    def write(
        self, stream: IO[bytes], digest: Digest | None = None, source: ReadOnce | None = None
    ) -> None:
        """Write the content of the file, tensor by tensor.

        ``digest`` is given what is written, ``source`` what is copied out of its files.

        Raises:
            InputError: a file cannot be read.
        """
        out = stream if digest is None else HashedStream(stream, digest)
        end = sent = 0
        for start, tensor in self._contents:
            out.write(bytes(start - end))
            _write(tensor, out, source)
            end = start + tensor.nbytes
            if end - sent >= _SENT:
                _send(stream, sent, end)
                sent = end

    def _is_shared(self, tensor: ir.TensorProtocol) -> TypeGuard[ir.ExternalTensor]:
        return self._share and isinstance(tensor, ir.ExternalTensor)

    def _placed(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not has_bytes(tensor):
            return tensor
        if tensor.nbytes < _EXTERNAL_FROM:
            return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        if self._is_shared(tensor):
            return self._at(tensor, location(self.path, Path(tensor.path)), tensor.offset or 0)
        return self._at(tensor, self.path.name, self._places[_source(tensor)])

    def _at(self, tensor: ir.TensorProtocol, where: str, offset: int) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            where,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=str(self.path.absolute().parent),
        )


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all stored tensors of a model, each counted once."""
    seen = {id(tensor): tensor for _, tensor in _stored(model)}
    return sum(tensor.nbytes for tensor in seen.values() if has_bytes(tensor))


def has_bytes(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is numbers; a tensor of texts stays in the model file."""
    return tensor.dtype != ir.DataType.STRING


def _stored(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _distinct(model: ir.Model) -> list[ir.TensorProtocol]:
    """The tensors that go into a data file; of those that are the same bytes one."""
    large = (t for _, t in _stored(model) if has_bytes(t) and t.nbytes >= _EXTERNAL_FROM)
    return list({_source(tensor): tensor for tensor in large}.values())


def _in_order_of_files(tensors: list[ir.TensorProtocol]) -> list[ir.TensorProtocol]:
    """What comes from files first, so that each of them is read from its front to its end."""
    files = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, ir.ExternalTensor)]
    # Of paths, as lists of files are: not of texts, which would put "a.b/c" before "a/c".
    return [*sorted(files, key=lambda tensor: (Path(tensor.path), tensor.offset or 0)), *others]


def _source(tensor: ir.TensorProtocol) -> object:
    """What is equal for two tensors that are the same bytes."""
    if not isinstance(tensor, ir.ExternalTensor):
        return id(tensor)
    return (tensor.path, tensor.offset or 0, tensor.nbytes)


def _write(tensor: ir.TensorProtocol, out: Out, source: ReadOnce | None) -> None:
    """Write the bytes of one tensor, a piece at a time."""
    if isinstance(tensor, ir.ExternalTensor):
        if source is not None:
            out = source.along(tensor.path, tensor.offset or 0, out)
        _copy(tensor, out)
    elif tensor.dtype.bitwidth < 8:
        out.write(tensor.tobytes())  # packs them
    else:
        _write_array(np.asarray(tensor.numpy(), order="C"), out)


def _copy(tensor: ir.ExternalTensor, out: Out) -> None:
    """Copy from file to file: in pieces, or by the system itself where ``out`` is a file alone."""
    try:
        tensor.tofile(out)  # checks where its file is, too
    except OSError as error:
        if error.filename == tensor.path or error.errno is None:  # else it is of writing
            reason = error.strerror or error
            raise InputError(f"{tensor.path}: cannot be read: {reason}") from error
        raise


def _send(stream: IO[bytes], start: int, end: int) -> None:
    """Let what was written go to the disk beside the work; at the end, only the rest has to."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # slower where it is not known, and right all the same
            os.posix_fadvise(stream.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _write_array(array: Array, out: Out) -> None:
    content = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(content), _PIECE):
        out.write(content[start : start + _PIECE])
    let_go(array)
