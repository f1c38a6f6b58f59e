"""Write a model so that it appears whole or not at all.

Every file is written under a temporary name in its own folder, flushed to the disk, and renamed
when all files of the model are complete. A failure at any point removes what was written and leaves
what was there before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.files.reading import external_files

# Protobuf ends at 2 GiB; serializing needs room beside the weights.
INLINE_LIMIT = 1_500_000_000
# Smaller tensors stay in the model file, where shape inference can see them.
_EXTERNAL_FROM = 1024
# A page, so that runtimes can map a tensor where it lies.
_ALIGNMENT = 4096


def write_model(
    model: ir.Model,
    path: str | Path,
    *,
    force: bool = False,
    inputs: Sequence[str | Path] = (),
    inline_limit: int = INLINE_LIMIT,
) -> tuple[Path, ...]:
    """Write ``model`` to ``path``, large weights to ``path`` + ``.data`` beside it.

    Weights go to the data file when they take more than ``inline_limit`` bytes or when the model
    refers to external data already. The model is unchanged afterwards.

    Args:
        model: the model.
        path: the file to make.
        force: replace files that exist.
        inputs: the files that the model was made from; never replaced, not even by force, and
            nor are the data files that it refers to.
        inline_limit: bytes of weights up to which they stay in the model file.

    Returns:
        The files written: the model, and its data file if there is one.

    Raises:
        InputError: the file exists, cannot be written, or the disk is full.
    """
    path = Path(path)
    read = (*inputs, *external_files(model))
    external = _weight_bytes(model) > inline_limit or bool(external_files(model))
    check_output(path, force=force, inputs=read)
    data = data_path(path) if external else None
    if data is not None:
        check_output(data, force=force, inputs=read)
    with _one_line_errors(path), _Transaction() as transaction:
        _write(model, path, data, transaction)
        transaction.commit()
    return (path,) if data is None else (path, data)


def check_output(
    path: str | Path, *, force: bool = False, inputs: Sequence[str | Path] = ()
) -> None:
    """Check, before any work is done, that ``path`` may be written.

    Raises:
        InputError: it is one of ``inputs``, exists without ``force``, or its folder is not
            writable.
    """
    path = Path(path)
    with _one_line_errors(path):
        check_no_input(path, inputs)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file name")
        if os.path.lexists(path) and not force:
            raise InputError(f"{path}: exists already; use --force to replace it, or another name")
        _check_folder(path)


def check_no_input(path: Path, inputs: Sequence[str | Path]) -> None:
    """Check that ``path`` is none of the files that are read, by whatever name or link.

    Raises:
        InputError: it is one of them, which the message names.
    """
    for each in map(Path, inputs):
        if _same_file(path, each):
            link = "" if path == each else f", the same file as {each}"
            raise InputError(f"{path}: is read as an input{link}; give another name to write to")


def check_replaced(folder: Path, inputs: Sequence[str | Path]) -> None:
    """Check that no input lies in a folder that will be removed and written anew.

    Raises:
        InputError: one does.
    """
    for each in map(Path, inputs):
        if Path(os.path.realpath(each)).is_relative_to(os.path.realpath(folder)):
            raise InputError(
                f"{folder}: holds the input {each}, and would be replaced; give another folder"
            )


def data_path(path: Path) -> Path:
    """Return where the large weights of the model at ``path`` go."""
    return path.with_name(path.name + ".data")


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write a small text file whole or not at all, under the same rules as a model.

    Raises:
        InputError: as :func:`write_model`.
    """
    with whole_file(path, force=force) as stream:
        # A path in the text may hold bytes that are no UTF-8; in JSON this makes an escape.
        stream.write(text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def whole_file(path: str | Path, *, force: bool = False) -> Iterator[IO[bytes]]:
    """Open a stream whose file appears when the context ends without an error.

    Raises:
        InputError: as :func:`write_model`.
    """
    path = Path(path)
    check_output(path, force=force)
    with _one_line_errors(path), _Transaction() as transaction:
        with transaction.open(path) as stream:
            yield stream
        transaction.commit()


# Checks before writing.


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.exists():
        raise InputError(f"{path}: there is no folder {str(folder)!r}; make it first")
    if not folder.is_dir():
        raise InputError(f"{path}: {str(folder)!r} is not a folder")
    if not os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise InputError(f"{path}: no permission to write in the folder {str(folder)!r}")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _weight_bytes(model: ir.Model) -> int:
    seen = {id(v.const_value): v.const_value for v in _initializers(model)}
    return sum(
        tensor.nbytes for tensor in seen.values() if tensor is not None and _has_bytes(tensor)
    )


def _has_bytes(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is numbers; a tensor of texts stays in the model file."""
    return tensor.dtype != ir.DataType.STRING


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (v for v in graph.initializers.values() if v.const_value is not None)


# Writing.


def _write(model: ir.Model, path: Path, data: Path | None, transaction: _Transaction) -> None:
    with contextlib.ExitStack() as stack:
        if data is not None:
            stream = stack.enter_context(transaction.open(data))
            stack.enter_context(_externalized(model, stream, data))
        content = ir.to_proto(model).SerializeToString()
    with transaction.open(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def _externalized(model: ir.Model, stream: IO[bytes], data: Path) -> Iterator[None]:
    """Write large initializers to ``stream``; inside the context the model refers to them there."""
    original = [(value, value.const_value) for value in _initializers(model)]
    written: dict[object, int] = {}
    try:
        for value, tensor in original:
            assert tensor is not None
            value.const_value = _moved(tensor, stream, data, written)
        yield
    finally:
        for value, tensor in original:
            value.const_value = tensor


def _moved(
    tensor: ir.TensorProtocol, stream: IO[bytes], data: Path, written: dict[object, int]
) -> ir.TensorProtocol:
    """The tensor as the new file has it; ``written`` tells where what came before it lies."""
    if not _has_bytes(tensor):
        return tensor
    if tensor.nbytes < _EXTERNAL_FROM:
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    source = _source(tensor)
    # Initializers that share a tensor, or its range of a file, share its bytes too.
    if source not in written:
        written[source] = _append(tensor, stream)
    return ir.ExternalTensor(
        data.name,
        written[source],
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=str(data.absolute().parent),
    )


def _source(tensor: ir.TensorProtocol) -> object:
    """What is equal for two tensors that are the same bytes."""
    if not isinstance(tensor, ir.ExternalTensor):
        return id(tensor)
    return (tensor.path, tensor.offset or 0, tensor.nbytes)


def _append(tensor: ir.TensorProtocol, stream: IO[bytes]) -> int:
    """Write the bytes of a tensor; returns where they begin."""
    stream.write(bytes(-stream.tell() % _ALIGNMENT))
    offset = stream.tell()
    # Tensors of onnx_ir stream themselves; the protocol alone does not promise it.
    if (tofile := getattr(tensor, "tofile", None)) is not None:
        tofile(stream)
    else:
        stream.write(tensor.tobytes())
    return offset


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # numpy reports a short write without saying what the system said.
        reason = error.strerror or f"{error}, probably a full disk"
        raise InputError(
            f"{path}: cannot be written: {reason}; nothing was left behind, give another place"
        ) from error


@dataclass
class _Pending:
    temporary: Path
    target: Path
    saved: Path | None = None
    renamed: bool = False


@dataclass
class _Transaction:
    """Files that become visible together, or not at all."""

    pending: list[_Pending] = field(default_factory=list)
    committed: bool = False

    def __enter__(self) -> _Transaction:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.committed:
            for file in reversed(self.pending):
                _undo(file)

    @contextlib.contextmanager
    def open(self, target: Path) -> Iterator[IO[bytes]]:
        """Open a new file that will become ``target``; on leaving, its bytes are on the disk."""
        file = _Pending(_temporary(target), target)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        descriptor = os.open(file.temporary, flags, 0o666)
        self.pending.append(file)
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def commit(self) -> None:
        """Rename every file to its target, in the order in which they were opened.

        The last rename decides: until it has happened, the earlier ones are taken back on failure.
        Only a power cut between two renames can leave new weights beside an old model.
        """
        *earlier, last = self.pending
        for file in earlier:
            file.saved = _keep(file.target)
            file.temporary.replace(file.target)
            file.renamed = True
        last.temporary.replace(last.target)
        self.committed = True
        for file in self.pending:
            _discard(file.saved)
            _sync_folder(file.target.parent)


def _keep(target: Path) -> Path | None:
    """Give a file that is about to be replaced a second name."""
    if not os.path.lexists(target):
        return None
    saved = _temporary(target)
    try:
        os.link(target, saved, follow_symlinks=False)
    except OSError:
        # Not every file system has hard links.
        target.replace(saved)
    return saved


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")


def _undo(file: _Pending) -> None:
    _discard(file.temporary)
    if file.saved is not None:
        with contextlib.suppress(OSError):
            file.saved.replace(file.target)
        # Still there when it was a second name of the untouched target.
        _discard(file.saved)
    elif file.renamed:
        _discard(file.target)


def _discard(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make renames durable; not every system can, and the files are complete without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
