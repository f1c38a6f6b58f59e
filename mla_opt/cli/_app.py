"""The application: its commands, its help, its version."""

from __future__ import annotations

import gc
import logging
from typing import Annotated

import typer

from mla_opt.cli import (
    bench,
    build_kernels,
    demo,
    doctor,
    export,
    inspect,
    optimize,
    report,
    verify,
)
from mla_opt.cli._exit import EXIT_CODE_HELP, stop_on_signals

app = typer.Typer(
    name="mla-opt",
    help="Find Multi-head Latent Attention in an ONNX model, absorb it, fuse it, and prove the "
    "result.",
    epilog=EXIT_CODE_HELP,
    no_args_is_help=True,
    # Plain help: boxes leave the options of optimize a column of twenty letters.
    rich_markup_mode=None,
    # Errors are one line each (_exit.py); a traceback is there for whoever asks.
    pretty_exceptions_enable=False,
)
for _name, _command, _short in (
    ("optimize", optimize.optimize, "Rewrite the latent attention of a model."),
    ("inspect", inspect.inspect, "Show every attention of a model and its cost."),
    ("verify", verify.verify, "Run two models and compare them."),
    ("report", report.report, "All of it as one page for a browser."),
    ("bench", bench.bench, "Time two models, and others beside them."),
    ("build-kernels", build_kernels.build_kernels, "Compile the CUDA kernels."),
    ("export", export.export, "Make a folder to ship: ONNX Runtime, TensorRT, Triton."),
    ("demo", demo.demo, "All of it on a small model that comes along."),
    ("doctor", doctor.doctor, "What is installed, and ready, on this machine."),
):
    app.command(_name, short_help=_short, epilog=EXIT_CODE_HELP)(_command)


_GARBAGE = (100_000, 50, 1000)
"""Objects made before a collection, and collections before one that looks at older objects, too."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from mla_opt.version import tool_version

        typer.echo(f"mla-opt {tool_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line; leaves by ``SystemExit``."""
    stop_on_signals()
    # Graphs are millions of small objects that live to the end: looking through them all for
    # garbage, again and again, takes a third of the time.
    gc.set_threshold(*_GARBAGE)
    # Without any handler, Python prints warnings of libraries among the messages.
    logging.getLogger().addHandler(logging.NullHandler())
    app()
