"""Programs in and out of files, as `torch.export.save` writes them.

Loading such a file can run code that is in it: PyTorch unpickles tensors of unusual kinds, example
inputs and custom objects, and evaluates the sizes' expressions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_opt.errors import InputError, require_memory
from mla_opt.files.model_io import check_input, check_output, sha256
from mla_opt.files.writing import whole_file
from mla_opt.programs.archive import Archive, read_archive
from mla_opt.programs.recognize import PROGRAM_SUFFIX, is_program_file
from mla_opt.report.report import ModelFile

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True)
class SavedProgram:
    """A program, and what else was in its file.

    Attributes:
        program: the program.
        torch_version: the release of PyTorch that wrote the file.
        extra_files: texts that were saved beside it, by name.
    """

    program: ExportedProgram
    torch_version: str = ""
    extra_files: Mapping[str, str] = field(default_factory=dict)


def read_program(path: Path) -> SavedProgram:
    """Load a program.

    Raises:
        InputError: PyTorch is missing, or the file is damaged, of another release, or calls
            operators that nobody has registered.
    """
    check_input(path)
    archive = read_archive(path)
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{path}: is a PyTorch program, and PyTorch is missing: pip install torch")
    import torch

    import mla_opt.operator.torch.op  # noqa: F401 (programs that were optimized call it)

    with _logged() as records:
        try:
            program = torch.export.load(path)
        except Exception as error:  # torch's errors here share no base
            require_memory(error)
            raise InputError(f"{path}: {_why(archive, records, error)}") from error
    return SavedProgram(program, archive.torch_version, archive.extra_files)


def check_program_output(
    path: Path, *, force: bool = False, source: str | Path | None = None
) -> None:
    """Check, before any work is done, that a program may be written to ``path``.

    Raises:
        InputError: as `check_output`, or it is named otherwise than PyTorch asks for.
    """
    if not is_program_file(path):
        raise InputError(f"{path}: a program is written; give a name that ends in {PROGRAM_SUFFIX}")
    check_output(path, force=force, inputs=() if source is None else [source])


def write_program(
    saved: SavedProgram, path: Path, *, force: bool = False, source: str | Path | None = None
) -> str:
    """Save a program so that its file appears whole or not at all.

    Returns:
        The release of PyTorch that wrote it.

    Raises:
        InputError: the file exists, cannot be written, or the program cannot be saved.
    """
    import torch

    check_program_output(path, force=force, source=source)
    with whole_file(path, force=force) as stream:
        try:
            torch.export.save(saved.program, stream, extra_files=dict(saved.extra_files))
        except OSError:
            raise
        except Exception as error:  # torch's errors here share no base
            require_memory(error)
            raise InputError(f"{path}: PyTorch cannot save the program: {_line(error)}") from error
    return str(torch.__version__)


def describe_program(path: Path, torch_version: str, digest: str | None = None) -> ModelFile:
    """Return what a report says of a program on disk; ``digest`` is its hash, where it is known."""
    producer = f"PyTorch {torch_version}" if torch_version else ""
    return ModelFile(str(path), digest or sha256([path]), path.stat().st_size, {}, 0, producer)


def _why(archive: Archive, records: Sequence[logging.LogRecord], error: Exception) -> str:
    """Why PyTorch does not load the file, and what to do."""
    import torch

    unknown = [name for name in archive.operators if not _is_known(name)]
    if unknown:
        first = ", ".join("::".join(name.split(".")[:2]) for name in unknown[:3])
        return (
            f"calls operators that are not registered here: {first}; import the package that"
            " registers them, load the program, and give it to mla_opt.optimize in Python"
        )
    if archive.torch_version and archive.torch_version != torch.__version__:
        return (
            f"was written by PyTorch {archive.torch_version}, and this is {torch.__version__},"
            f" which does not load it; save it with this release ({_cause(records, error)})"
        )
    return f"PyTorch {torch.__version__} does not load it: {_cause(records, error)}"


def _is_known(name: str) -> bool:
    """Whether ``namespace.operator.overload`` is registered."""
    import torch

    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    return True


def _cause(records: Sequence[logging.LogRecord], error: Exception) -> str:
    """What went wrong first: PyTorch logs it, and raises that something went wrong."""
    logged = [each.exc_info[1] for each in records if each.exc_info and each.exc_info[1]]
    return _line(logged[0] if logged else error)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextlib.contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """Keep what PyTorch logs while it loads off the screen, and at hand."""
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        yield records
    finally:
        logger.removeFilter(keep)
