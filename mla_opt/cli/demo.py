"""``mla-opt demo``: inspect, optimize, verify and time a small model that comes along."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mla_opt.cli import _optimize_file
from mla_opt.cli import inspect as inspect_command
from mla_opt.cli import verify as verify_command
from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose
from mla_opt.cli._settings import Settings

MODEL = "demo.onnx"
CONTEXT = 4096
PASTS = (512, 2048, 8192)


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Keep the files here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Inspect, optimize, verify and time a small model that comes with mla-opt."""
    with exit_on_error(verbose=verbose):
        screen = Screen(quiet=quiet, verbose=verbose)
        with _folder(output) as folder:
            _run(folder, force, screen)
            if output is not None:
                screen.say(f"the models and the report are in {folder}")


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    from mla_opt.errors import InputError

    if output is None:
        with tempfile.TemporaryDirectory(prefix="mla-opt-demo-") as temporary:
            yield Path(temporary)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be made a folder: {error.strerror}") from error
    yield output


def _run(folder: Path, force: bool, screen: Screen) -> None:
    from mla_opt.cost_model import Workload
    from mla_opt.report.timing import timing_table

    model = _unpack(folder, force)
    settings = Settings(
        model=model,
        output=folder / "demo.mla.onnx",
        # Verified below, by the command that does it for any two models.
        verify=False,
        force=force,
        report=folder / "demo.report.json",
    )
    screen.say(f"$ mla-opt inspect {MODEL} --context {CONTEXT}")
    workload = Workload(1, 1, CONTEXT)
    inspect_command.show(inspect_command.look(model, workload, screen, hashed=False), screen)
    screen.say(f"\n$ mla-opt optimize {MODEL} --no-verify")
    _optimize_file.run(settings, screen)
    screen.say(f"\n$ mla-opt verify {MODEL} {settings.output.name}")
    report = verify_command.compare(model, settings.output, screen)
    verify_command.show(report, screen)
    verify_command.require(report)
    screen.say("\none decode step, measured here:")
    screen.show([timing_table(_times(model, settings.output, screen))])


def _unpack(folder: Path, force: bool) -> Path:
    """Write the model that comes along into ``folder``."""
    from mla_opt.files.model_io import check_output, whole_file
    from mla_opt.models import demo_model

    packed = demo_model()
    target = folder / MODEL
    check_output(target, force=force, inputs=[packed])
    with whole_file(target, force=force) as stream:
        stream.write(packed.read_bytes())
    return target


def _times(original: Path, optimized: Path, screen: Screen) -> list[tuple[int, float, float]]:
    """Return past tokens, and seconds of one decode step before and after."""
    from mla_opt.cli._timing import decode_seconds

    rows: list[tuple[int, float, float]] = []
    with screen.activity("timing") as activity:
        for done, past in enumerate(PASTS):
            activity.step(f"timing a decode step at {past} tokens", done, len(PASTS))
            rows.append((past, *decode_seconds(original, optimized, past)))
    return rows
