"""The proof that a report of ``optimize`` has recorded: of which files, and from which seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mla_opt.report import ModelFile, OptimizationReport
    from mla_opt.verification.extent import Extent

_LARGEST = 64 << 20
"""Bytes of a report; one of a thousand attentions has two million."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A proof in a report.

    Attributes:
        report: the file that it is from.
        original: what a report says of the model that was optimized.
        optimized: the same of what was written.
        verification: what was compared, and how far apart it was.
        seed: what the inputs followed from.
    """

    report: Path
    original: ModelFile
    optimized: ModelFile
    verification: Mapping[str, object]
    seed: int

    @property
    def controls(self) -> bool:
        """Whether broken copies had to be noticed."""
        return bool(self.verification.get("controls"))

    @property
    def extent(self) -> Extent:
        """Whether whole models were run, or only the parts that differ."""
        return "by-layer" if self.verification.get("layers") else "whole"

    def paths(self, original: Path | None, optimized: Path | None) -> tuple[Path, Path]:
        """Where the two models are: as told here, else as the report says.

        Raises:
            InputError: the report leads to a program, which nobody has vouched for.
        """
        return self._path(original, self.original), self._path(optimized, self.optimized)

    def _path(self, given: Path | None, recorded: ModelFile) -> Path:
        from mla_opt.errors import InputError
        from mla_opt.programs.recognize import is_program_file

        path = given or Path(recorded.path)
        if given is None and is_program_file(path):
            raise InputError(
                f"{self.report}: is about {path}, a program, which can run code when it is loaded;"
                " if you trust it, name both models before --from-report"
            )
        return path

    def changes(self, original: ModelFile, optimized: ModelFile) -> tuple[str, ...]:
        """Which of the two files are not what they were, one sentence each."""
        pairs = ((original, self.original), (optimized, self.optimized))
        return tuple(
            f"{now.path} has changed: its SHA-256 is {now.sha256}, the report says {then.sha256}"
            for now, then in pairs
            if now.sha256 != then.sha256
        )


def read_report(path: Path) -> OptimizationReport:
    """Read a report that ``optimize --report`` wrote.

    Raises:
        InputError: it is none.
    """
    from mla_opt.errors import InputError, one_line
    from mla_opt.files.model_io import check_input
    from mla_opt.report import OptimizationReport as Report

    if check_input(path) > _LARGEST:
        raise InputError(f"{path}: is too large for a report")
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no report of mla-opt optimize: {one_line(error)}") from error


def read_recorded(path: Path) -> Recorded:
    """Read the proof from a report that ``optimize --report`` wrote.

    Raises:
        InputError: it is no report, or one of a run without a proof or without an output.
    """
    from mla_opt.errors import InputError

    report = read_report(path)
    if report.verification is None:
        raise InputError(f"{path}: is of a run without a proof; give the two models to verify them")
    if report.input is None or report.output is None:
        raise InputError(f"{path}: is of a run that wrote nothing, so there is nothing to verify")
    return Recorded(path, report.input, report.output, report.verification, _seed(path, report))


def _seed(path: Path, report: OptimizationReport) -> int:
    from mla_opt.errors import InputError

    seed = None if report.verification is None else report.verification.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise InputError(f"{path}: does not say from which seed its proof followed")
    return seed
