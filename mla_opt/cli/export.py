"""``mla-opt export``: a model as a folder to ship, for ONNX Runtime, TensorRT, or Triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._export_modes import (
    Destination,
    Mode,
    Precision,
    Runtime,
    given,
    mode_of,
    refuse_needless,
)
from mla_opt.cli._options import CacheType, Quiet, Verbose, choice, names

if TYPE_CHECKING:
    from mla_opt.engines.export import ExportOptions
    from mla_opt.engines.manifest import Manifest
    from mla_opt.engines.profiles import Range, Ranges


_RANGE = "[[MIN,]OPT,]MAX"


def export(
    command: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="The ONNX model, as exported; for onnxruntime and triton-server also one "
            "optimized with --cache static:ROWS, and for triton-server a folder of engines.",
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
            help="tensorrt: engines. onnxruntime: a model, its kernels, and programs that run it; "
            "--rows, --cache-type, --no-verify and --force are for it. triton-server: a model "
            "repository of the Triton Inference Server; --name, --server-path, --instances and "
            "--force are for it.",
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
    cache_type: Annotated[
        CacheType,
        typer.Option(
            parser=choice(CacheType),
            metavar=names(CacheType),
            help="With --to onnxruntime: keep the rows of a float32 model's caches in 16 bits, or "
            "8.",
        ),
    ] = CacheType.KEEP,
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
    """Make a folder of MODEL that can be shipped.

    For TensorRT: two engines on the same caches, one for whole prompts and one for decode steps,
    and the ONNX files they are made of. For ONNX Runtime: the model with caches that are written in
    place, the CPU kernels for this platform, and programs in Python and C++ that generate with
    them. Both with a manifest.
    """
    with exit_on_error(verbose=verbose):
        screen = Screen(quiet=quiet, verbose=verbose)
        mode = mode_of(to, runtime, onnx_only)
        typed = given(command)
        refuse_needless(typed, mode)
        if mode is Mode.SERVER:
            serve(model, output, name, server_path, instances, force, screen)
            return
        if mode is Mode.BUNDLE:
            chosen_rows = _one("--rows", rows) if "rows" in typed else None
            bundle(model, output, chosen_rows, cache_type, verify, force, screen)
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


def bundle(
    model: Path,
    output: Path,
    rows: int | None,
    cache_type: CacheType,
    verify: bool,
    force: bool,
    screen: Screen,
) -> None:
    """Write a bundle, and tell about it."""
    from mla_opt.bundles import BundleOptions, export_bundle

    options = BundleOptions(rows, cache_type.value, verify, force)
    with screen.activity(f"checking {model}") as activity:
        manifest = export_bundle(
            model, output, options, say=activity.step, observer=activity.observe
        )
    count, proof = len(manifest.layers), "verified" if manifest.verified else "not verified"
    screen.say(
        f"wrote {output}: {count} latent attention{'' if count == 1 else 's'} on caches of"
        f" {manifest.rows} rows, {proof}; its README.md tells how to run it"
    )


def _tell(manifest: Manifest, output: Path, screen: Screen) -> None:
    from mla_opt.report.units import quantity

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
