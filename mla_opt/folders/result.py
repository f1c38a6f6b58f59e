"""What became of a folder, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mla_opt.report.report import OptimizationReport


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A value of a config that follows the model: ``key`` of the file ``name``."""

    name: str
    key: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One ONNX file of a folder.

    Attributes:
        name: below the folder, with ``/``.
        report: of its optimization; where nothing matched, why not; ``None`` where it could not
            be read.
        left: why it was copied as it is; ``None`` where it was optimized.
    """

    name: str
    report: OptimizationReport | None
    left: str | None = None


@dataclass(frozen=True, slots=True)
class FolderResult:
    """An optimized folder and how it was made.

    Attributes:
        kind: what the folder is, by its files.
        output: the folder that was written.
        files: its ONNX files.
        changes: what was changed in configs.
        carried: names of the files that were copied as they are.
        notes: what to know before it is used.
    """

    kind: str
    output: Path
    files: tuple[FolderFile, ...]
    changes: tuple[ConfigChange, ...]
    carried: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def optimized(self) -> tuple[FolderFile, ...]:
        """The files that were rewritten."""
        return tuple(file for file in self.files if file.left is None)
