"""``mla-opt optimize``: rewrite the latent attention of a model and write the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mla_opt.cli._console import Activity, Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._models import OpenFile, check_output, read
from mla_opt.cli._options import (
    Absorb,
    CacheType,
    ModelOrFolder,
    Prefill,
    Quiet,
    Target,
    Verbose,
    Weights,
    WeightsFiles,
    choice,
    names,
    parse_passes,
)
from mla_opt.cli._options import (
    cache as read_cache,
)

if TYPE_CHECKING:
    from mla_opt.events import Event
    from mla_opt.files.read_once import ReadOnce
    from mla_opt.report import ModelFile, OptimizationReport

    Hashing = ReadOnce | None

#: What the API knows nothing of.
_OWN = (
    "model",
    "output",
    "force",
    "report",
    "weights_files",
    "print_between_passes",
    "time_passes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of ``optimize``: where to, how, and what to tell."""

    model: Path
    output: Path
    target: str = "onnxruntime"
    absorb: str = "auto"
    cache: str = "keep"
    cache_type: str = "keep"
    prefill: str = "auto"
    keep_activation_quantization: bool = False
    weights: str = "float"
    weights_files: str = "copy"
    verify: bool | Literal["by-layer"] = True
    passes: tuple[str, ...] | None = None
    allow_unmatched: bool = False
    force: bool = False
    report: Path | None = None
    print_between_passes: bool = False
    time_passes: bool = False

    @property
    def shares(self) -> bool:
        """Whether weights stay in the files of the model."""
        return self.weights_files == WeightsFiles.SHARE

    def api_options(self) -> dict[str, Any]:
        """Return the keyword arguments of ``mla_opt.api.optimize``."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OWN
        }


def optimize(
    model: ModelOrFolder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file or folder to write.  [default: MODEL-stem.mla.onnx or .pt2, FOLDER.mla]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    target: Annotated[
        Target,
        typer.Option(
            parser=choice(Target),
            metavar=names(Target),
            help="onnxruntime: the fused operator with its function body, which ONNX Runtime and "
            "TensorRT can inline. portable: standard operators only.",
        ),
    ] = Target.ONNXRUNTIME,
    absorb: Annotated[
        Absorb,
        typer.Option(
            parser=choice(Absorb),
            metavar=names(Absorb),
            help="Keep W_UK and W_UV as two small matrices (factored), multiply them into the "
            "projections beside them (fold-q, fold-o, fold), or ask the cost model (auto).",
        ),
    ] = Absorb.AUTO,
    cache: Annotated[
        str,
        typer.Option(
            parser=read_cache,
            metavar="keep|packed|even|static[:ROWS]",
            help="The model's own cache tensors, one latent tensor per layer (packed), two of half "
            "its width (even), or a buffer of so many rows (4096, 4k) that is written in place.",
        ),
    ] = "keep",
    cache_type: Annotated[
        CacheType,
        typer.Option(
            parser=choice(CacheType),
            metavar=names(CacheType),
            help="Keep the rows of a float32 model's cache in 16 bits: half the memory, for an "
            "error of the rounding. Or in 8 (fp8: e4m3), with scales: a quarter, for a larger one.",
        ),
    ] = CacheType.KEEP,
    prefill: Annotated[
        Prefill,
        typer.Option(
            parser=choice(Prefill),
            metavar=names(Prefill),
            help="The form for long queries; auto: whichever is cheaper at each length.",
        ),
    ] = Prefill.AUTO,
    keep_activation_quantization: Annotated[
        bool,
        typer.Option(
            "--keep-activation-quantization",
            help="Refuse attentions whose activations are quantized; if not given, they are "
            "rewritten without that, and the report says so.",
        ),
    ] = False,
    weights: Annotated[
        Weights,
        typer.Option(
            parser=choice(Weights),
            metavar=names(Weights),
            help="float: store W_UK and W_UV in the type of the queries. keep: one operator holds "
            "them in the bits that the model stores them in. auto: keep, where the target has that "
            "operator and nothing is folded.",
        ),
    ] = Weights.AUTO,
    weights_files: Annotated[
        WeightsFiles,
        typer.Option(
            parser=choice(WeightsFiles),
            metavar=names(WeightsFiles),
            help="copy: the result has all its weights. share: it refers to the data files of "
            "MODEL, which must stay as they are, and only what is new is written. For that it has "
            "to be in their folder, or in one above.",
        ),
    ] = WeightsFiles.COPY,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run both models and compare.")
    ] = True,
    verify_by_layer: Annotated[
        bool,
        typer.Option(
            "--verify-by-layer",
            help="Verify only the parts that differ, one at a time, in the memory of one. This is "
            "done by itself where both models do not fit into memory.",
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write the report here.")
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="Write the model even if nothing matched.")
    ] = False,
    passes: Annotated[
        str | None,
        typer.Option("--passes", metavar="NAME,NAME", help="Run these passes only, in this order."),
    ] = None,
    print_between_passes: Annotated[
        bool, typer.Option("--print-between-passes", help="Print the graph after every pass.")
    ] = False,
    time_passes: Annotated[
        bool, typer.Option("--time-passes", help="Print what each pass did and how long it took.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rewrite the latent attention of MODEL, prove the result, and write it.

    Every attention whose keys and values come from one shared latent is absorbed and fused; what
    cannot be proved is left as it was, and the report says why. A folder is written whole: its ONNX
    files are rewritten, configs follow, everything else is copied.
    """
    chosen = parse_passes(passes)
    if verify_by_layer and not verify:
        raise typer.BadParameter("--no-verify verifies nothing", param_hint="--verify-by-layer")
    with exit_on_error(verbose=verbose):
        from mla_opt.cli import _folders
        from mla_opt.files.model_io import default_output

        folder = _folders.is_folder(model)
        default = _folders.default_output if folder else default_output
        settings = Settings(
            model=model,
            output=output or default(model),
            target=target.value,
            absorb=absorb.value,
            cache=cache,
            cache_type=cache_type.value,
            prefill=prefill.value,
            keep_activation_quantization=keep_activation_quantization,
            weights=weights.value,
            weights_files=weights_files.value,
            verify="by-layer" if verify_by_layer else verify,
            passes=chosen,
            allow_unmatched=allow_unmatched,
            force=force,
            report=report,
            print_between_passes=print_between_passes,
            time_passes=time_passes,
        )
        screen = Screen(quiet=quiet, verbose=verbose)
        if folder:
            _folders.run(settings, screen)
        else:
            run(settings, screen)


def run(settings: Settings, screen: Screen) -> OptimizationReport:
    """Optimize from file to file, tell about it, and return the report.

    What identifies the files is in it where it is written: they are hashed for nothing else.

    Raises:
        InputError, NothingMatchedError, VerificationError: nothing was written but the report.
    """
    _check_outputs(settings)
    moving = not settings.print_between_passes
    with screen.activity(f"reading {settings.model}", moving=moving) as activity:
        opened = read(settings.model)
        _protect(settings, opened)
        with _hashing(settings, opened) as source:
            report, files = _optimize_and_write(settings, opened, source, activity, screen)
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


def observer_of(settings: Settings, activity: Activity) -> Callable[[Event], None]:
    """What is told of passes and runs: progress, and with --print-between-passes the graph."""
    if not settings.print_between_passes:
        return activity.observe

    def observe(event: Event) -> None:
        from mla_opt.events import PassFinished

        activity.observe(event)
        if isinstance(event, PassFinished):
            print(f"// after {event.name}\n{event.graph_text()}\n")

    return observe


def complete(report: OptimizationReport, settings: Settings) -> OptimizationReport:
    """Add what only the command line knows."""
    from mla_opt.report.plain import to_plain

    return replace(report, options=to_plain({**report.options, **settings.api_options()}))


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
    from mla_opt.report.terminal import quantity

    names = {file: seen_from(output.parent, file) for file in files}
    own = [file for file in files if file == output or is_own_data(output, names[file])]
    written = " and ".join(f"{file} ({quantity(file.stat().st_size, 'B')})" for file in own)
    shared = [name for file, name in names.items() if file not in own]
    return f"{written}, which shares {', '.join(shared)}" if shared else written


def tell_of_kernel(screen: Screen) -> None:
    """Say that the fused operator has no kernel here, and how to get it."""
    from mla_opt.errors import KernelUnavailableError
    from mla_opt.kernels import kernel_library

    try:
        kernel_library()
    except KernelUnavailableError as error:
        screen.say(
            "note: here the model runs by the function bodies in it, which give the same results"
            f" and take longer, because {error}"
        )


def show_report(settings: Settings, report: OptimizationReport, screen: Screen) -> None:
    """Show the tables of a report."""
    from mla_opt.report.terminal import optimization_tables

    timings = settings.time_passes or screen.verbose
    screen.show(optimization_tables(report, timings=timings, details=screen.verbose))
