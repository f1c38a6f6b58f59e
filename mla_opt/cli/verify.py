"""``mla-opt verify``: run the original and the optimized model, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose, count

if TYPE_CHECKING:
    from mla_opt.cli._recorded import Recorded
    from mla_opt.verification import ParityReport
    from mla_opt.verification.extent import Extent


def verify(
    original: Annotated[
        Path | None, typer.Argument(metavar="ORIGINAL", help="The model as it was.")
    ] = None,
    optimized: Annotated[
        Path | None, typer.Argument(metavar="OPTIMIZED", help="The optimized model.")
    ] = None,
    from_report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Repeat the proof of a report that optimize wrote, and say whether the two models "
            "are still those. They are where the report says, or where you say.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=count(0),
            metavar="N",
            help="Repeat a verification: its report names the seed.  [default: a fresh one]",
        ),
    ] = None,
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="Compare both graphs and all weights, and run only the parts that differ, one at "
            "a time. This is done by itself where both models do not fit into memory, or where "
            "caches are rounded in a model with experts.",
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run ORIGINAL and OPTIMIZED on the same inputs, prefill and decode, and compare.

    Both are ONNX models, or both programs that torch.export.save wrote (.pt2), which can run code
    when they are loaded. Works across changed caches. Broken copies of OPTIMIZED must be told apart
    from it, too.
    """
    if from_report is not None and by_layer:
        raise typer.BadParameter("the report says how", param_hint="--by-layer")
    if from_report is not None and seed is not None:
        raise typer.BadParameter("the report names the seed", param_hint="--seed")
    if (from_report is None or original is not None) and optimized is None:
        raise typer.BadParameter("give ORIGINAL and OPTIMIZED, or --from-report and neither")
    with exit_on_error(verbose=verbose):
        screen = Screen(quiet=quiet, verbose=verbose)
        if from_report is not None:
            repeat(from_report, original, optimized, screen)
            return
        assert original is not None
        assert optimized is not None
        report = compare(
            original, optimized, screen, seed, extent="by-layer" if by_layer else "auto"
        )
        show(report, screen)
        require(report)


def repeat(file: Path, original: Path | None, optimized: Path | None, screen: Screen) -> None:
    """Repeat the proof of a report, and tell what has changed since.

    Raises:
        InputError: it is no report with a proof, or a model cannot be used.
        VerificationError: the proof fails, or is of other files than these.
    """
    from mla_opt.cli._models import read
    from mla_opt.cli._recorded import read_recorded
    from mla_opt.errors import VerificationError

    recorded = read_recorded(file)
    before, after = recorded.paths(original, optimized)
    report = compare(
        before,
        after,
        screen,
        recorded.seed,
        controls=recorded.controls,
        extent=recorded.extent,
    )
    show(report, screen)
    with screen.activity("hashing"):
        changes = recorded.changes(read(before).describe(), read(after).describe())
    screen.say(_compared(report, recorded, changes))
    require(report)
    if changes:
        raise VerificationError(f"{'; '.join(changes)}; the report proves nothing of it")


def _compared(report: ParityReport, recorded: Recorded, changes: Sequence[str]) -> str:
    """What has changed since a report was written."""
    from mla_opt.report.plain import to_plain

    same = to_plain(report.as_dict()) == recorded.verification
    files = "not the files of the report" if changes else "the files of the report, by SHA-256"
    return f"these are {files}; the proof's numbers are {'' if same else 'not '}those of the report"


def compare(
    original: Path,
    optimized: Path,
    screen: Screen,
    seed: int | None = None,
    *,
    controls: bool = True,
    extent: Extent = "auto",
) -> ParityReport:
    """Verify two files, on inputs that follow from ``seed``; whole, or layer by layer.

    Raises:
        InputError: a file cannot be used, or the two do not belong together.
        VerificationError: the optimized model cannot be loaded.
    """
    from mla_opt.files.model_io import read_model
    from mla_opt.programs.recognize import is_program_file
    from mla_opt.verification.extent import verify_as

    with screen.activity(f"reading {original}") as activity:
        for path in (original, optimized):
            if not is_program_file(path):
                read_model(path)
        return verify_as(
            extent, original, optimized, seed=seed, controls=controls, progress=activity.observe
        )


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
