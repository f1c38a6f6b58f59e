"""Write a model so that it appears whole or not at all.

The model and its data are one transaction (:mod:`mla_opt.files.transaction`). A model that replaces
another has its weights in a file of another name, so that no moment shows new weights beside an old
graph.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.files.hashed import Digest, sha256
from mla_opt.files.read_once import ReadOnce, sha256_along
from mla_opt.files.reading import external_files, referred_files
from mla_opt.files.sharing import location
from mla_opt.files.transaction import Transaction
from mla_opt.files.weights import DataFile, weight_bytes

# Protobuf ends at 2 GiB; serializing needs room beside the weights.
INLINE_LIMIT = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Written:
    """A model on disk: the file, its data files by name, and the hash of all, in hex."""

    files: tuple[Path, ...]
    sha256: str


def write_model(
    model: ir.Model,
    path: str | Path,
    *,
    force: bool = False,
    inputs: Sequence[str | Path] = (),
    inline_limit: int = INLINE_LIMIT,
    share: bool = False,
) -> tuple[Path, ...]:
    """Write ``model`` to ``path``, large weights to ``path`` + ``.data`` beside it.

    Weights go to the data file when they take more than ``inline_limit`` bytes or when the model
    refers to external data already. Where that file is there already, and ``force`` allows to
    replace it, they go to ``path`` + ``.1.data``, and back when that is replaced; what was replaced
    is removed. The model is unchanged afterwards.

    Args:
        model: the model.
        path: the file to make.
        force: replace files that exist.
        inputs: the files that the model was made from; never replaced, not even by force, and
            nor are the data files that it refers to.
        inline_limit: bytes of weights up to which they stay in the model file.
        share: refer to the data files that tensors came from, and write only what is new.

    Returns:
        The files written: the model, its data file if there is one, and what it shares.

    Raises:
        InputError: the file exists, another run is writing it, it cannot be written, the disk is
            full, or a file cannot be shared from there.
    """
    files, _ = _written(model, Path(path), force, inputs, inline_limit, share)
    return files


def write_hashed(
    model: ir.Model,
    path: str | Path,
    *,
    force: bool = False,
    inputs: Sequence[str | Path] = (),
    inline_limit: int = INLINE_LIMIT,
    share: bool = False,
    data: Path | None = None,
    source: ReadOnce | None = None,
) -> Written:
    """Like :func:`write_model`; tells the hash of what was written.

    It is made while that is written; only shared files are read for it. What is copied out of the
    files of ``source`` goes into its hash as well. ``data`` is where the weights go instead of
    ``path`` + ``.data``, beside it; no file may be there.

    Raises:
        InputError: as :func:`write_model`, or a file of ``source`` cannot be read.
    """
    with Digest() as digest:
        files, shares = _written(
            model, Path(path), force, inputs, inline_limit, share, data, digest, source
        )
        if not shares:
            return Written(files, digest.hexdigest())
    return Written(files, sha256(files) if source is None else sha256_along(files, source))


def _written(
    model: ir.Model,
    path: Path,
    force: bool,
    inputs: Sequence[str | Path],
    inline_limit: int,
    share: bool,
    data: Path | None = None,
    digest: Digest | None = None,
    source: ReadOnce | None = None,
) -> tuple[tuple[Path, ...], bool]:
    """Write a model; returns its files, and whether it shares some of them."""
    read = (*inputs, *external_files(model))
    external = weight_bytes(model) > inline_limit or bool(external_files(model))
    check_output(path, force=force, inputs=read)
    with one_line_errors(path), Transaction(path, lambda: referred_files(path)) as transaction:
        check_output(path, force=force, inputs=read)  # another run may have made it meanwhile
        where, replaced = _places(path, data, force, read) if external else _nowhere(path, read)
        file = None if where is None else DataFile(model, where, share=share)
        _write(model, path, file, transaction, digest, source)
        transaction.commit(replaced)
    if file is None:
        return (path,), False
    shared = file.shared()
    if not shared:
        return (path, file.path), False
    own = () if file.is_empty else (file.path,)
    return (path, *_as_read(path, (*own, *shared))), True


def _as_read(path: Path, data: Sequence[Path]) -> tuple[Path, ...]:
    """Data files under the names, and in the order, in which who reads the model finds them."""
    folder = path.absolute().parent
    return tuple(sorted(folder / location(path, each) for each in data))


def _nowhere(path: Path, inputs: Sequence[str | Path]) -> tuple[None, tuple[Path, ...]]:
    """No data file, and which file of one is left by the model that is replaced."""
    return None, _left(path, inputs)


def _places(
    path: Path, data: Path | None, force: bool, inputs: Sequence[str | Path]
) -> tuple[Path, tuple[Path, ...]]:
    """Where the weights go, and which files will be theirs no more."""
    if data is None:
        return _data_paths(path, force, inputs)
    check_output(data, inputs=inputs)
    return data, ()


def _data_paths(
    path: Path, force: bool, inputs: Sequence[str | Path]
) -> tuple[Path, tuple[Path, ...]]:
    """Where the weights go, which is no file yet, and which files will be theirs no more."""
    first = data_path(path)
    check_output(first, force=force, inputs=inputs)
    names = [first, *(path.with_name(f"{path.name}.{count}.data") for count in range(1, 4))]
    free = [name for name in names if not os.path.lexists(name)]
    if not free:
        raise InputError(f"{path}: {names[-1].name} and those before it exist; remove them first")
    for name in names:
        check_no_input(name, inputs)
    return free[0], tuple(name for name in names if name not in free) if force else ()


def _left(path: Path, inputs: Sequence[str | Path]) -> tuple[Path, ...]:
    """The data file of the model at ``path``, where one without takes its place."""
    with contextlib.suppress(InputError):
        ours = [path.with_name(each) for each in referred_files(path) if is_own_data(path, each)]
        return tuple(each for each in ours if not any(_same_file(each, Path(i)) for i in inputs))
    return ()


def is_own_data(path: Path, name: str) -> bool:
    """Whether a data file of the model at ``path`` has a name that only that model's have."""
    return re.fullmatch(rf"{re.escape(path.name)}(\.\d)?\.data", name) is not None


def clear_up(path: str | Path) -> None:
    """Remove what a run that was killed while it wrote ``path`` has left beside it.

    Raises:
        InputError: a run is writing it now, or the folder is not writable.
    """
    path = Path(path)
    check_parent(path)
    with one_line_errors(path), Transaction(path, lambda: referred_files(path)):
        pass


def check_output(
    path: str | Path, *, force: bool = False, inputs: Sequence[str | Path] = ()
) -> None:
    """Check, before any work is done, that ``path`` may be written.

    Raises:
        InputError: it is one of ``inputs``, exists without ``force``, or its folder is not
            writable.
    """
    path = Path(path)
    with one_line_errors(path):
        check_no_input(path, inputs)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file name")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no regular file, and is not replaced; give another name")
        if os.path.lexists(path) and not force:
            raise InputError(f"{path}: exists already; use --force to replace it, or another name")
        check_parent(path)


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
    with one_line_errors(path), Transaction(path) as transaction:
        check_output(path, force=force)  # another run may have made it meanwhile
        with transaction.open(path) as stream:
            yield stream
        transaction.commit()


# Checks before writing.


def check_parent(path: Path) -> None:
    """Check that something may be made at ``path``, as far as its folder goes.

    Raises:
        InputError: the folder is not there, or not writable.
    """
    folder = path.parent
    with one_line_errors(path):
        # Since Python 3.14 `exists` is false, too, of what may not be looked at.
        try:
            mode = folder.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{path}: there is no folder {str(folder)!r}; make it first"
            ) from error
    if not stat.S_ISDIR(mode):
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


# Writing.


def _write(
    model: ir.Model,
    path: Path,
    file: DataFile | None,
    transaction: Transaction,
    digest: Digest | None,
    source: ReadOnce | None,
) -> None:
    """Write both files; to ``digest`` goes what is written, the model file's bytes first."""
    with contextlib.nullcontext() if file is None else file.referred_to():
        content = ir.to_proto(model).SerializeToString()
    if digest is not None:
        digest.write(content)
    if file is not None and not (file.is_empty and file.shared()):
        with transaction.open(file.path) as stream:
            file.write(stream, digest, source)
    with transaction.open(path) as stream:
        stream.write(content)
    if source is not None and not (file and file.shared()):
        source.hexdigest()  # what cannot be read to its end is told before anything appears


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` into an `InputError`."""
    try:
        yield
    except OSError as error:
        # numpy reports a short write without saying what the system said.
        reason = error.strerror or f"{error}, probably a full disk"
        raise InputError(
            f"{path}: cannot be written: {reason}; nothing was left behind, give another place"
        ) from error
