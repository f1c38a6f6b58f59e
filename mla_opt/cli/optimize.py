"""``mla-opt optimize``: rewrite the latent attention of a model and write the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import (
    Absorb,
    CacheType,
    MatmulNbits,
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
from mla_opt.cli._settings import Settings

#: Said of an output, where there is nothing to do.
UP_TO_DATE = (
    "is up to date: this release made it of the same input with the same options, and neither has"
    " changed since; remove it to have it made again"
)


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
    force: Annotated[
        bool, typer.Option("--force", help="Replace what exists, unless it is up to date.")
    ] = False,
    target: Annotated[
        Target,
        typer.Option(
            parser=choice(Target),
            metavar=names(Target),
            help="onnxruntime: the fused operator with its function body, which ONNX Runtime and "
            "TensorRT can inline. portable: standard operators only. onnxruntime-paged: ONNX "
            "Runtime's PagedAttention, for servers on CUDA: the tokens of all sequences packed, "
            "caches in blocks.",
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
    matmul_nbits: Annotated[
        MatmulNbits,
        typer.Option(
            parser=choice(MatmulNbits),
            metavar=names(MatmulNbits),
            help="kernel: the kernel library runs MatMulNBits of accuracy level 4, the quantized "
            "layers of the whole model. Faster on CPUs with AVX-512 VNNI; elsewhere ONNX Runtime's "
            "own operator runs. keep: they stay as they are.",
        ),
    ] = MatmulNbits.KEEP,
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
        from mla_opt.cli import _folders, _optimize_file
        from mla_opt.files.done_before import Record
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
            matmul_nbits=matmul_nbits.value,
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
        record = Record(settings.asked()) if settings.repeats else None
        if force and record is not None and record.holds():
            screen.say(f"{settings.output} {UP_TO_DATE}")
            return
        run = _folders.run if folder else _optimize_file.run
        run(settings, screen, record)
