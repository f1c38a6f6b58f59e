"""``mla-opt optimize FOLDER``: what is asked of the API, told and written down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mla_opt.cli._console import Screen
from mla_opt.cli._options import Target
from mla_opt.cli._settings import Settings
from mla_opt.cli._told import complete, observer_of, show_report, tell_of_kernel

if TYPE_CHECKING:
    from mla_opt.files.done_before import Record
    from mla_opt.folders import FolderFile, FolderResult
    from mla_opt.report import OptimizationReport


def is_folder(path: Path) -> bool:
    """Whether a folder is there; what cannot be looked at is told by who reads it."""
    try:
        return path.is_dir()
    except OSError:
        return False


def default_output(folder: Path) -> Path:
    """Return where an optimized folder goes by default: ``models/m`` gives ``models/m.mla``.

    Raises:
        InputError: that would be inside a Hugging Face cache, or there is no such name.
    """
    from mla_opt.errors import InputError

    path = folder.absolute()
    if folder.name in ("", "..") or path.parent.name == "snapshots":
        raise InputError(f"{folder}: has no place beside it to write to; give a folder with -o")
    return folder.with_name(f"{folder.name}.mla")


def run(settings: Settings, screen: Screen, record: Record | None = None) -> FolderResult:
    """Optimize from folder to folder, tell about it, and return what was done.

    The record, where there is one, keeps that it was done.

    Raises:
        InputError, NothingMatchedError, VerificationError: nothing was written but the report.
    """
    from mla_opt.errors import NothingMatchedError, VerificationError
    from mla_opt.files.done_before import stamps
    from mla_opt.folders import optimize_folder

    reports = _Reports(settings)
    known = stamps(_whole(settings.model))
    moving = not settings.print_between_passes
    with screen.activity(f"reading {settings.model}", moving=moving) as activity:
        try:
            result = optimize_folder(
                settings.model,
                settings.output,
                force=settings.force,
                observer=observer_of(settings, activity),
                say=activity.step,
                **settings.api_options(),
            )
        except (NothingMatchedError, VerificationError) as error:
            reports.failed(error, screen)
            raise
    reports.show(result.files, screen)
    if record is not None:
        record.keep(known + stamps([*_whole(settings.output), *reports.written()]))
    _tell(settings, result, screen)
    return result


def _whole(folder: Path) -> list[Path]:
    """A folder and all that is in it."""
    return [folder, *folder.rglob("*")]


class _Reports:
    """The reports of the files of a folder, and where they are written if somewhere."""

    def __init__(self, settings: Settings) -> None:
        """Find out before the work, not after it, that one cannot be written.

        Raises:
            InputError: it cannot; or weights were to be shared, which a folder cannot.
        """
        from mla_opt.errors import InputError
        from mla_opt.folders.tree import read_tree

        if settings.shares:
            raise InputError(
                f"{settings.model}: an optimized folder has all its weights; leave out"
                " --weights-files share"
            )
        self._settings = settings
        self._tree = read_tree(settings.model)
        for name in self._tree.models():
            self._check(self._path(name))

    def show(self, files: Iterable[FolderFile], screen: Screen) -> None:
        """Show and write the report of every file that has one."""
        several = len(self._tree.models()) > 1
        for file in files:
            if file.report is not None:
                if several:
                    screen.say(f"{file.name}:")
                self._tell(file.name, file.report, screen)

    def written(self) -> list[Path]:
        """The reports that were asked for and are there."""
        paths = (self._path(name) for name in self._tree.models())
        return [path for path in paths if path is not None and path.exists()]

    def failed(self, error: Exception, screen: Screen) -> None:
        """Show and write the report of what has failed, if there is one."""
        from mla_opt.report import OptimizationReport

        report = getattr(error, "report", None)
        if isinstance(report, OptimizationReport) and report.input is not None:
            path = Path(report.input.path)
            self._tell(path.relative_to(self._tree.folder).as_posix(), report, screen)

    def _tell(self, name: str, report: OptimizationReport, screen: Screen) -> None:
        from mla_opt.files.model_io import write_text

        report = complete(report, self._settings)
        path = self._path(name)
        if path is not None:
            write_text(path, report.to_json(), force=self._settings.force)
        show_report(self._settings, report, screen)

    def _path(self, name: str) -> Path | None:
        """Where the report of a file goes: to the file that was named, or to one beside it."""
        report = self._settings.report
        if report is None or len(self._tree.models()) == 1:
            return report
        part = name.removesuffix(".onnx").replace("/", ".")
        return report.with_name(f"{report.stem}.{part}{report.suffix}")

    def _check(self, path: Path | None) -> None:
        from mla_opt.errors import InputError
        from mla_opt.files.model_io import check_output

        if path is None:
            return
        inputs = [self._tree.path(name) for name in self._tree.files]
        check_output(path, force=self._settings.force, inputs=inputs)
        if path.resolve().is_relative_to(self._settings.output.resolve()):
            raise InputError(f"{path}: is in the folder that is written; give another name")


def _tell(settings: Settings, result: FolderResult, screen: Screen) -> None:
    for file in result.files:
        if file.left is not None:
            screen.say(f"{file.name} is left as it was: {file.left}")
    for change in result.changes:
        screen.say(f"{change.name}: {change.key} {change.before} -> {change.after}")
    screen.say(f"wrote {result.output}, for {result.kind}: {_done(settings, result)}")
    for note in result.notes:
        screen.say(f"note: {note}")
    if result.optimized and settings.target == Target.ONNXRUNTIME:
        tell_of_kernel(screen)


def _done(settings: Settings, result: FolderResult) -> str:
    count = len(result.optimized)
    reports = (file.report for file in result.optimized)
    sites = sum(len(report.sites) for report in reports if report is not None)
    proof = "verified" if settings.verify and sites else "not verified"
    return (
        f"{_counted(sites, 'latent attention')} rewritten in {_counted(count, 'ONNX file')},"
        f" {proof}; {_counted(len(result.carried), 'file')} copied"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
