"""``mla-opt export``: engines of a model for TensorRT, or a model repository for Triton."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose, choice, names

if TYPE_CHECKING:
    from mla_opt.engines.export import ExportOptions
    from mla_opt.engines.manifest import Manifest
    from mla_opt.engines.profiles import Range, Ranges


class Destination(StrEnum):
    """What is made."""

    TENSORRT = "tensorrt"
    TRITON_SERVER = "triton-server"


class Precision(StrEnum):
    """The type of products and caches."""

    AUTO = "auto"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Runtime(StrEnum):
    """Which TensorRT builds."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


class Mode(StrEnum):
    """The ways to export, by the options that choose them."""

    TENSORRT = "--runtime tensorrt"
    RTX = "--runtime rtx"
    ONNX_ONLY = "--onnx-only"
    SERVER = "--to triton-server"


_RANGE = "[[MIN,]OPT,]MAX"
_BUILDS = frozenset({Mode.TENSORRT, Mode.RTX})
_LOWERS = frozenset({*_BUILDS, Mode.ONNX_ONLY})
_SERVES = frozenset({Mode.SERVER})
#: The modes in which an option does something. An option that would do nothing is refused.
WORKS_IN: dict[str, frozenset[Mode]] = {
    "model": frozenset(Mode),
    "output": frozenset(Mode),
    "to": frozenset(Mode),
    "force": frozenset(Mode),
    "quiet": frozenset(Mode),
    "verbose": frozenset(Mode),
    "name": _SERVES,
    "server_path": _SERVES,
    "instances": _SERVES,
    "rows": _LOWERS,
    "batch": _LOWERS,
    "prompt": _LOWERS,
    "step": _LOWERS,
    "context": _LOWERS,
    "precision": _LOWERS,
    "verify": _LOWERS,
    "no_plugin": _LOWERS,
    "onnx_only": frozenset({Mode.ONNX_ONLY}),
    "runtime": _BUILDS,
    "plugin": _BUILDS,
    "embed_plugin": _BUILDS,
    "timing_cache": _BUILDS,
    "sm": frozenset({Mode.RTX}),
}


def export(
    command: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The ONNX model, as exported; for triton-server, a folder of engines, or a model "
            "optimized with --cache static:ROWS.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
    ],
    to: Annotated[
        Destination,
        typer.Option(
            parser=choice(Destination),
            metavar=names(Destination),
            help="tensorrt: engines. triton-server: a model repository of the Triton Inference "
            "Server; of the other options only --name, --server-path, --instances and --force "
            "are for it.",
        ),
    ] = Destination.TENSORRT,
    name: Annotated[
        str,
        typer.Option(metavar="NAME", help="What the server calls the model.  [default: MODEL's]"),
    ] = "",
    server_path: Annotated[
        str,
        typer.Option(metavar="PATH", help="Where the server will find the repository (DIR)."),
    ] = "/models",
    instances: Annotated[
        int,
        typer.Option(metavar="N", help="Sequences that the server works on at once."),
    ] = 1,
    rows: Annotated[
        str, typer.Option(metavar="N", help="Rows of each cache: prompt and answer together.")
    ] = "4k",
    batch: Annotated[str, typer.Option(metavar=_RANGE, help="B: sequences of a call.")] = "1",
    prompt: Annotated[
        str,
        typer.Option(metavar=_RANGE, help="S of a prompt.  [default: up to the rows, 512 usual]"),
    ] = "",
    step: Annotated[
        str, typer.Option(metavar=_RANGE, help="S of a decode call: new tokens.")
    ] = "1",
    context: Annotated[
        str,
        typer.Option(
            metavar=_RANGE, help="T: tokens in sight of a decode call.  [default: up to the rows]"
        ),
    ] = "",
    precision: Annotated[
        Precision,
        typer.Option(
            parser=choice(Precision),
            metavar=names(Precision),
            help="Of products, weights and caches; norms, sums and softmax stay float32. auto: the "
            "model's own 16 bits, bfloat16 for float32.",
        ),
    ] = Precision.AUTO,
    runtime: Annotated[
        Runtime,
        typer.Option(
            parser=choice(Runtime),
            metavar=names(Runtime),
            help="tensorrt: for the GPU that is there. rtx: TensorRT-RTX, which needs none.",
        ),
    ] = Runtime.TENSORRT,
    sm: Annotated[
        str,
        typer.Option(
            "--sm", metavar="N,N", help="Compute capabilities to build for, with --runtime rtx."
        ),
    ] = "",
    plugin: Annotated[
        Path | None,
        typer.Option(
            "--plugin",
            metavar="FILE",
            help="The plugin library.  [default: what build-kernels made]",
        ),
    ] = None,
    no_plugin: Annotated[
        bool, typer.Option("--no-plugin", help="Decode by standard operators.")
    ] = False,
    embed_plugin: Annotated[
        bool,
        typer.Option("--embed-plugin", help="Put the plugin into the engine, not beside it."),
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measurements of earlier builds, read and added to."),
    ] = None,
    onnx_only: Annotated[
        bool, typer.Option("--onnx-only", help="Write the ONNX files, and build nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Run the lowered graphs and compare, before conversion."
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that exists.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make engines of MODEL: one for whole prompts, one for decode steps, on the same caches.

    Writes the engines, the ONNX files they are made of, and a manifest.
    """
    with exit_on_error(verbose=verbose):
        screen = Screen(quiet=quiet, verbose=verbose)
        mode = _mode(to, runtime, onnx_only)
        _refuse_needless(_given(command), mode)
        if mode is Mode.SERVER:
            serve(model, output, name, server_path, instances, force, screen)
            return
        from mla_opt.engines.export import ExportOptions

        ranges = _ranges(rows, batch, prompt, step, context)
        options = ExportOptions(
            ranges=ranges,
            precision=_precision(precision),
            runtime="rtx" if runtime is Runtime.RTX else "tensorrt",
            compute_capabilities=_capabilities(sm),
            use_plugin=not no_plugin,
            plugin=plugin,
            embed_plugin=embed_plugin,
            timing_cache=timing_cache,
            onnx_only=onnx_only,
            verify=verify,
            force=force,
        )
        run(model, output, options, screen)


def run(model: Path, output: Path, options: ExportOptions, screen: Screen) -> Manifest:
    """Export, tell about it, and return the manifest."""
    from mla_opt.engines.export import export as make

    with screen.activity(f"checking {model}") as activity:
        manifest = make(
            model,
            output,
            options,
            say=lambda text, done, total: activity.step(text, done, total or None),
            observer=activity.observe,
        )
    _tell(manifest, output, screen)
    return manifest


def serve(
    source: Path,
    repository: Path,
    name: str,
    server_path: str,
    instances: int,
    force: bool,
    screen: Screen,
) -> None:
    """Write a model repository, and tell about it."""
    from mla_opt.engines.triton_config import Serving
    from mla_opt.engines.triton_server import export_repository
    from mla_opt.errors import InputError

    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    chosen = name or (source.absolute().name if source.is_dir() else source.name.split(".")[0])
    serving = Serving(server_path, instances)
    with screen.activity(f"reading {source}"):
        folder = export_repository(source, repository, chosen, serving, force=force)
    screen.say(
        f"wrote {folder}: a model for the Triton Inference Server, not yet loaded by one; its"
        " README.md tells how to start the server"
    )


def _tell(manifest: Manifest, output: Path, screen: Screen) -> None:
    from mla_opt.report.terminal import quantity

    for phase in manifest.phases:
        size = "" if phase.engine is None else f", {quantity(phase.engine.bytes, 'B')}"
        built = phase.engine is not None
        became = sorted({each.became if built else each.lowered for each in phase.attentions})
        told = f": {len(phase.attentions)} attentions as {' and '.join(became)}"
        screen.say(f"{phase.phase}{size}{told}")
        for note in phase.notes:
            screen.say(f"  note: {note}")
        for each in phase.attentions:
            screen.detail(f"  {each.name}: {each.became} ({', '.join(each.kernels)})")
    proof = "verified" if manifest.verified else "not verified"
    what = "engines" if manifest.builder is not None else "ONNX files, no engines"
    screen.say(f"wrote {output}: {what} in {manifest.precision}, {proof}")


def _mode(to: Destination, runtime: Runtime, onnx_only: bool) -> Mode:
    if to is Destination.TRITON_SERVER:
        return Mode.SERVER
    if onnx_only:
        return Mode.ONNX_ONLY
    return Mode.RTX if runtime is Runtime.RTX else Mode.TENSORRT


def _given(command: typer.Context) -> list[str]:
    """The parameters that were typed, rather than left as they are."""
    names = (str(each.name) for each in command.command.params)
    sources = ((name, command.get_parameter_source(name)) for name in names)
    return [name for name, source in sources if source is not None and "DEFAULT" not in source.name]


def _refuse_needless(given: Iterable[str], mode: Mode) -> None:
    """Raise `InputError` for an option that would do nothing."""
    from mla_opt.errors import InputError

    for name in given:
        if mode not in WORKS_IN[name]:
            others = " and ".join(each.value for each in Mode if each in WORKS_IN[name])
            if mode is Mode.SERVER:
                others = "--to tensorrt"
            raise InputError(
                f"--{name.replace('_', '-')} does nothing with {mode.value}; it is for {others}."
                " Leave it out"
            )


def _precision(chosen: Precision) -> Literal["float16", "bfloat16"] | None:
    if chosen is Precision.AUTO:
        return None
    return "float16" if chosen is Precision.FLOAT16 else "bfloat16"


def _ranges(rows: str, batch: str, prompt: str, step: str, context: str) -> Ranges:
    """The ranges of the options; what is not given goes up to the rows of the cache."""
    from mla_opt.engines.profiles import Range, Ranges

    capacity = _one("--rows", rows)
    usual = min(512, capacity)
    return Ranges(
        rows=capacity,
        batch=_range("--batch", batch),
        prompt=_range("--prompt", prompt) if prompt else Range(1, usual, capacity),
        step=_range("--step", step),
        context=_range("--context", context) if context else Range(1, usual, capacity),
    )


def _range(option: str, text: str) -> Range:
    from mla_opt.engines.profiles import Range
    from mla_opt.errors import InputError

    try:
        return Range.parse(text)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def _one(option: str, text: str) -> int:
    """A single number; ``k`` stands for 1024."""
    from mla_opt.errors import InputError

    if "," in text:
        raise InputError(f"{option}: {text!r} is not one number; caches have one size")
    return _range(option, text).most


def _capabilities(text: str) -> tuple[int, ...]:
    from mla_opt.errors import InputError

    names = [name.strip().lower().removeprefix("sm").lstrip("_") for name in text.split(",")]
    wrong = [name for name in names if not name.isdecimal()]
    if text and wrong:
        raise InputError(f"--sm: {wrong[0]!r} is no compute capability, such as 89 or 120")
    return tuple(dict.fromkeys(int(name) for name in names)) if text else ()
