"""``mla-opt bench``: time the original and the optimized model, and others beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose, count, number

if TYPE_CHECKING:
    from mla_opt.benchmarking.peers.catalog import Peer
    from mla_opt.benchmarking.point_run import Settings
    from mla_opt.benchmarking.points import Point
    from mla_opt.benchmarking.report import BenchReport, MissingPeer


def bench(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The model as it was.")],
    optimized: Annotated[Path, typer.Argument(metavar="OPTIMIZED", help="The optimized model.")],
    context: Annotated[
        str,
        typer.Option(metavar="N,N", help="Tokens in the cache before a step; k stands for 1024."),
    ] = "1k,8k",
    batch: Annotated[str, typer.Option(metavar="N,N", help="B: sequences at a time.")] = "1",
    query: Annotated[str, typer.Option(metavar="N,N", help="S: new tokens of a step.")] = "1",
    threads: Annotated[
        int | None,
        typer.Option(
            parser=count(),
            metavar="N",
            help="Threads of each process.  [default: all this one may use]",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(parser=count(), metavar="N", help="Turns of each at each point.")
    ] = 6,
    seconds: Annotated[
        float,
        typer.Option(
            parser=number(),
            metavar="N",
            help="No further round begins after this time at a point.",
        ),
    ] = 60.0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every number here.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.png", help="Draw step time against context; needs matplotlib."
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also Hugging Face, OpenVINO, llama.cpp and ik_llama.cpp, if installed.",
        ),
    ] = False,
    peers_model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The same model for the peers: config.json and safetensors."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time steps of ORIGINAL and OPTIMIZED: in turns, each in its own process, caches fed back.

    OPTIMIZED runs by its function body and, where this installation has it, by the kernel library.
    Outputs are compared with the original's; if they differ, the exit code is 4.
    """
    with exit_on_error(verbose=verbose):
        from mla_opt.benchmarking.point_run import Settings

        settings = Settings(
            original=original,
            optimized=optimized,
            points=_points(context, batch, query),
            threads=threads or len(os.sched_getaffinity(0)),
            rounds=rounds,
            seconds=seconds,
        )
        _check_outputs(json, plot, force, (original, optimized))
        there, missing = _peers(peers, peers_model, settings.threads)
        screen = Screen(quiet=quiet, verbose=verbose)
        report = _measure(settings, there, missing, screen)
        _write(report, json, plot, force)
        _tell(report, screen)


def _points(context: str, batch: str, query: str) -> tuple[Point, ...]:
    from mla_opt.benchmarking.points import grid, parse_sizes
    from mla_opt.errors import InputError

    sizes: list[tuple[int, ...]] = []
    for name, text, least in (("context", context, 0), ("batch", batch, 1), ("query", query, 1)):
        try:
            sizes.append(parse_sizes(text, least))
        except InputError as error:
            raise InputError(f"--{name}: {error}") from error
    return grid(*sizes)


def _check_outputs(
    json: Path | None, plot: Path | None, force: bool, models: Sequence[Path]
) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    from mla_opt.errors import InputError
    from mla_opt.files.model_io import check_output

    written = [path for path in (json, plot) if path is not None]
    # Only what is there can be an input.
    inputs = _files(models) if any(path.exists() for path in written) else ()
    for path in written:
        check_output(path, force=force, inputs=inputs)
    if json is not None and plot is not None and json.absolute() == plot.absolute():
        raise InputError(f"{json}: is given for --json and for --plot; name another")
    if plot is not None:
        from mla_opt.benchmarking.plot import require_matplotlib

        require_matplotlib()


def _files(models: Sequence[Path]) -> Sequence[Path]:
    """The files of the models, their data included."""
    from mla_opt.files.model_io import model_files, read_model

    return [file for path in models for file in model_files(path, read_model(path))]


def _peers(
    wanted: bool, model: Path | None, threads: int
) -> tuple[Sequence[Peer], Sequence[MissingPeer]]:
    from mla_opt.errors import InputError

    if not wanted:
        if model is not None:
            raise InputError("--peers-model is for --peers; give both or neither")
        return (), ()
    if model is None:
        raise InputError(
            "--peers needs --peers-model DIR with config.json and safetensors: other libraries"
            " cannot read their model from an ONNX file"
        )
    if not (model / "config.json").is_file():
        raise InputError(f"{model}: holds no config.json; give the folder of a transformers model")
    from mla_opt.benchmarking.peers.catalog import installed

    return installed(model, threads)


def _measure(
    settings: Settings, peers: Sequence[Peer], missing: Sequence[MissingPeer], screen: Screen
) -> BenchReport:
    from mla_opt.benchmarking.runner import bench as run

    with screen.activity("reading both models") as activity:

        def say(text: str, done: int, total: int) -> None:
            activity.step(text, done, total or None)
            if done:
                screen.detail(text)

        return run(settings, peers, missing, say)


def _write(report: BenchReport, json: Path | None, plot: Path | None, force: bool) -> None:
    from mla_opt.files.model_io import whole_file, write_text

    if json is not None:
        write_text(json, report.to_json(), force=force)
    if plot is not None:
        from mla_opt.benchmarking.plot import plot as draw

        with whole_file(plot, force=force) as stream:
            draw(report, stream)


def _tell(report: BenchReport, screen: Screen) -> None:
    """Show the tables.

    Raises:
        VerificationError: the optimized model's outputs differ from the original's.
    """
    from mla_opt.benchmarking.table import bench_tables
    from mla_opt.errors import VerificationError

    screen.show(bench_tables(report))
    if report.wrong:
        first = report.wrong[0]
        where = f"batch {first.batch}, {first.query} new tokens on {first.context}"
        off = "" if first.agreement.error is None else f" by {first.agreement.error:.1e}"
        raise VerificationError(
            f"outputs differ: {first.participant}, {where}:"
            f" {first.agreement.output}{off}, tolerated {first.agreement.tolerance:.1e}"
        )
