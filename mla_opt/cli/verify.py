"""``mla-opt verify``: run the original and the optimized model, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose, count

if TYPE_CHECKING:
    from mla_opt.verification import ParityReport


def verify(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model as it was.")],
    optimized: Annotated[Path, typer.Argument(metavar="OPTIMIZED", help="The optimized model.")],
    seed: Annotated[
        int | None,
        typer.Option(
            parser=count(0),
            metavar="N",
            help="Repeat a verification: its report names the seed.  [default: a fresh one]",
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run ORIGINAL and OPTIMIZED on the same inputs, prefill and decode, and compare.

    Both are ONNX models, or both programs that torch.export.save wrote (.pt2), which can run code
    when they are loaded. Works across changed caches. Broken copies of OPTIMIZED must be told apart
    from it, too.
    """
    with exit_on_error(verbose=verbose):
        screen = Screen(quiet=quiet, verbose=verbose)
        report = compare(original, optimized, screen, seed)
        show(report, screen)
        require(report)


def compare(
    original: Path, optimized: Path, screen: Screen, seed: int | None = None
) -> ParityReport:
    """Verify two files, on inputs that follow from ``seed``.

    Raises:
        InputError: a file cannot be used, or the two do not belong together.
        VerificationError: the optimized model cannot be loaded.
    """
    from mla_opt.files.model_io import read_model
    from mla_opt.programs.recognize import is_program_file
    from mla_opt.verification import verify as run

    with screen.activity(f"reading {original}") as activity:
        for path in (original, optimized):
            if not is_program_file(path):
                read_model(path)
        return run(original, optimized, seed=seed, progress=activity.observe)


def show(report: ParityReport, screen: Screen) -> None:
    """Print the report as tables."""
    from mla_opt.verification.table import render

    screen.show([render(report)])


def require(report: ParityReport) -> None:
    """Check that the verification passed.

    Raises:
        VerificationError: it did not; the message counts the failures and gives the first.
    """
    from mla_opt.errors import VerificationError

    if report.passed:
        return
    failures = report.failures or ("no scenario could be run",)
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    note = f"; {report.note}" if report.note else ""
    raise VerificationError(f"verification failed: {failures[0]}{more}{note}")
