"""``mla-opt optimize FILE``: from file to file, told and written down."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mla_opt.cli._console import Activity, Screen
from mla_opt.cli._models import OpenFile, check_output, read
from mla_opt.cli._options import Target
from mla_opt.cli._settings import Settings
from mla_opt.cli._told import complete, observer_of, show_report, tell_of_kernel

if TYPE_CHECKING:
    from mla_opt.files.done_before import Record
    from mla_opt.files.read_once import ReadOnce
    from mla_opt.report import ModelFile, OptimizationReport

    Hashing = ReadOnce | None


def run(settings: Settings, screen: Screen, record: Record | None = None) -> OptimizationReport:
    """Optimize from file to file, tell about it, and return the report.

    What identifies the files is in it where it is written: they are hashed for nothing else. The
    record, where there is one, keeps that it was done.

    Raises:
        InputError, NothingMatchedError, VerificationError: nothing was written but the report.
    """
    from mla_opt.files.done_before import stamps

    _check_outputs(settings)
    moving = not settings.print_between_passes
    with screen.activity(f"reading {settings.model}", moving=moving) as activity:
        known = stamps([settings.model])
        opened = read(settings.model)
        known += stamps(opened.files())
        _protect(settings, opened)
        with _hashing(settings, opened) as source:
            report, files = _optimize_and_write(settings, opened, source, activity, screen)
    if record is not None:
        record.keep(known + stamps([*files, *([settings.report] if settings.report else [])]))
    _tell(settings, report, files, screen)
    return report


def _hashing(settings: Settings, opened: OpenFile) -> contextlib.AbstractContextManager[Hashing]:
    from mla_opt.files.read_once import ReadOnce

    asked = settings.report is not None
    return ReadOnce(opened.files()) if asked else contextlib.nullcontext()


def _check_outputs(settings: Settings) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    from mla_opt.errors import InputError
    from mla_opt.files import model_io

    model_io.check_input(settings.model)
    model_io.clear_up(settings.output)
    check_output(settings.output, force=settings.force, source=settings.model)
    if settings.report is not None:
        model_io.check_output(settings.report, force=settings.force, inputs=[settings.model])
        report = settings.report.absolute()
        outputs = (settings.output, model_io.data_path(settings.output))
        if report in (path.absolute() for path in outputs):
            raise InputError(f"{settings.report}: is both the output and the report; name another")


def _protect(settings: Settings, opened: OpenFile) -> None:
    """Check that nothing that will be written is the model or holds its weights."""
    from mla_opt.files.model_io import check_no_input, check_output, data_path

    if settings.shares:
        opened.check_sharing(settings.output)
    if len(opened.files()) > 1:
        check_output(data_path(settings.output), force=settings.force, inputs=opened.files())
    for path in (settings.output, data_path(settings.output), settings.report):
        if path is not None:
            check_no_input(path, opened.files())


def _optimize_and_write(
    settings: Settings,
    opened: OpenFile,
    source: Hashing,
    activity: Activity,
    screen: Screen,
) -> tuple[OptimizationReport, tuple[Path, ...]]:
    """Do it; returns the report, and the files that the result is made of."""
    from mla_opt import api
    from mla_opt.errors import InputError, NothingMatchedError, VerificationError

    observer = observer_of(settings, activity)
    try:
        result = api.optimize(opened.model, observer=observer, **settings.api_options())
    except (NothingMatchedError, VerificationError) as error:
        _tell_failure(settings, error, opened, source, screen)
        raise
    except InputError as error:
        raise InputError(f"{settings.model}: {error}") from error
    activity.step(f"writing {settings.output}")
    files, written = opened.write(
        result.model, settings.output, force=settings.force, share=settings.shares, source=source
    )
    report = complete(result.report, settings)
    report = replace(report, input=_described(opened, source), output=written)
    _write_report(settings, report)
    return report, files


def _described(opened: OpenFile, source: Hashing) -> ModelFile | None:
    """What identifies the input, where a report is written."""
    return None if source is None else opened.describe(source.hexdigest())


def _write_report(settings: Settings, report: OptimizationReport) -> None:
    if settings.report is not None:
        from mla_opt.files.model_io import write_text

        write_text(settings.report, report.to_json(), force=settings.force)


def _tell_failure(
    settings: Settings, error: Exception, opened: OpenFile, source: Hashing, screen: Screen
) -> None:
    report: OptimizationReport | None = getattr(error, "report", None)
    if report is None:
        return
    report = replace(complete(report, settings), input=_described(opened, source))
    _write_report(settings, report)
    show_report(settings, report, screen)


def _tell(
    settings: Settings, report: OptimizationReport, files: Sequence[Path], screen: Screen
) -> None:
    show_report(settings, report, screen)
    proof = "verified" if report.verification is not None else "not verified"
    count = len(report.sites)
    attentions = f"{count} latent attention{'' if count == 1 else 's'} rewritten"
    screen.say(f"wrote {_written(settings.output, files)}: {attentions}, {proof}")
    if report.sites and settings.target == Target.ONNXRUNTIME:
        tell_of_kernel(screen)


def _written(output: Path, files: Sequence[Path]) -> str:
    """The files that were written, each with its size, and those that are shared."""
    from mla_opt.files.model_io import is_own_data, seen_from
    from mla_opt.report.units import quantity

    names = {file: seen_from(output.parent, file) for file in files}
    own = [file for file in files if file == output or is_own_data(output, names[file])]
    written = " and ".join(f"{file} ({quantity(file.stat().st_size, 'B')})" for file in own)
    shared = [name for file, name in names.items() if file not in own]
    return f"{written}, which shares {', '.join(shared)}" if shared else written
