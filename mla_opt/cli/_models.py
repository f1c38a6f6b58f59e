"""The two kinds of files that commands take: ONNX models, and programs of torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mla_opt.files.read_once import ReadOnce
    from mla_opt.report import ModelFile

Wrote = tuple[tuple[Path, ...], "ModelFile | None"]
"""The files of a model that was written, and what a report says of them, where one is asked for."""


class OpenFile(Protocol):
    """A model that was read from a file."""

    @property
    def model(self) -> Any:
        """What the API takes."""

    def files(self) -> tuple[Path, ...]:
        """The file, and those that hold its weights."""

    def describe(self, digest: str | None = None) -> ModelFile:
        """What a report says of the file, and its data; ``digest`` is their hash, if known."""

    def notes(self) -> tuple[str, ...]:
        """What is to be known before reading an inspection."""

    def check_sharing(self, path: Path) -> None:
        """Check that a model at ``path`` can refer to the files that hold the weights of this one.

        Raises:
            InputError: it cannot.
        """

    def write(
        self,
        model: Any,
        path: Path,
        *,
        force: bool,
        share: bool = False,
        source: ReadOnce | None = None,
    ) -> Wrote:
        """Write what became of the model, whole or not at all.

        With ``share`` it refers to the files of this one for what has not changed. ``source`` is
        given for a report: what is copied goes into its hash, and what is written is described.
        """


def read(path: Path) -> OpenFile:
    """Read a file of either kind.

    Raises:
        InputError: it cannot be used.
    """
    from mla_opt.programs.recognize import is_program_file

    return ProgramFile(path) if is_program_file(path) else OnnxFile(path)


def check_output(path: Path, *, force: bool, source: Path) -> None:
    """Check, before any work is done, that what becomes of ``source`` may be written to ``path``.

    Raises:
        InputError: it may not, or is named as a file of the other kind.
    """
    from mla_opt.errors import InputError
    from mla_opt.files import model_io
    from mla_opt.programs.recognize import is_program_file
    from mla_opt.programs.saved import check_program_output

    if is_program_file(source):
        check_program_output(path, force=force, source=source)
        return
    if is_program_file(path):
        raise InputError(f"{path}: an ONNX model is written; give a name that ends in .onnx")
    model_io.check_output(path, force=force, inputs=[source])


class OnnxFile:
    """An ONNX model."""

    def __init__(self, path: Path) -> None:
        from mla_opt.files.model_io import read_model

        self._path = path
        self.model = read_model(path)

    def files(self) -> tuple[Path, ...]:
        """The file, and its external data."""
        from mla_opt.files.model_io import model_files

        return model_files(self._path, self.model)

    def describe(self, digest: str | None = None) -> ModelFile:
        """Hash and size, data files included."""
        from mla_opt.files.model_io import describe

        return describe(self.files(), self.model, digest)

    def notes(self) -> tuple[str, ...]:
        """Operators that nobody defines."""
        from mla_opt.files.model_io import unknown_operators

        return _unknown(unknown_operators(self.model))

    def check_sharing(self, path: Path) -> None:
        """Data files can be shared from their folder, and from those above."""
        from mla_opt.files.model_io import check_sharing

        check_sharing(path, self.files())

    def write(
        self,
        model: Any,
        path: Path,
        *,
        force: bool,
        share: bool = False,
        source: ReadOnce | None = None,
    ) -> Wrote:
        """The file, and its data file if there is one."""
        from mla_opt.files.model_io import describe, write_hashed, write_model

        inputs = self.files()
        if source is None:
            return write_model(model, path, force=force, inputs=inputs, share=share), None
        written = write_hashed(model, path, force=force, inputs=inputs, share=share, source=source)
        return written.files, describe(written.files, model, written.sha256)


class ProgramFile:
    """A program of torch.export."""

    def __init__(self, path: Path) -> None:
        from mla_opt.programs.saved import read_program

        self._path = path
        self._saved = read_program(path)
        self.model = self._saved.program

    def files(self) -> tuple[Path, ...]:
        """The file alone."""
        return (self._path,)

    def describe(self, digest: str | None = None) -> ModelFile:
        """Hash and size, and which release of PyTorch wrote it."""
        from mla_opt.programs.saved import describe_program

        return describe_program(self._path, self._saved.torch_version, digest)

    def notes(self) -> tuple[str, ...]:
        """None: a program with unknown operators cannot be read."""
        return ()

    def check_sharing(self, path: Path) -> None:
        """A program is one file."""
        from mla_opt.errors import InputError

        raise InputError(f"{self._path}: is a program, which holds its weights; they are copied")

    def write(
        self,
        model: Any,
        path: Path,
        *,
        force: bool,
        share: bool = False,
        source: ReadOnce | None = None,
    ) -> Wrote:
        """The program, and the texts that were saved beside the one that was read."""
        from dataclasses import replace

        from mla_opt.programs.saved import describe_program, write_program

        release = write_program(
            replace(self._saved, program=model), path, force=force, source=self._path
        )
        return (path,), None if source is None else describe_program(path, release)


def _unknown(names: Sequence[str]) -> tuple[str, ...]:
    return (f"operators that nothing here defines: {', '.join(names)}",) if names else ()
