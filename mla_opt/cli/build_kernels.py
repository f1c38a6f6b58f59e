"""``mla-opt build-kernels``: compile the CUDA kernels where the user's CUDA and TensorRT are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Quiet, Verbose

if TYPE_CHECKING:
    from mla_opt.kernels.building.cuda_build import Built


def build_kernels(
    arch: Annotated[
        str,
        typer.Option(metavar="N,N", help="Architectures to compile for, such as 80,86,90a,120."),
    ],
    tensorrt_headers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Compile the TensorRT plugin too, against the headers there."
        ),
    ] = None,
    flashinfer_headers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Let FlashInfer's kernel compute decode steps of 512 + 64 without bias and sink; "
            "DIR is flashinfer/data of the package flashinfer-python.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where the libraries go.  [default: where mla-opt looks for them]",
        ),
    ] = None,
    nvcc: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The compiler, if not the one found.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile the CUDA kernels, and the TensorRT plugin, with nvcc.

    Needs no GPU. 90a, rather than 90, is for Hopper's own matrix instructions. Devices newer than
    all compile what they run from the newest architecture without a letter.
    """
    with exit_on_error(verbose=verbose):
        from mla_opt.kernels.building import cuda_build
        from mla_opt.kernels.building.nvcc import parse_architectures
        from mla_opt.kernels.cuda_library import cuda_kernel_folder

        screen = Screen(quiet=quiet, verbose=verbose)
        names = parse_architectures(arch)
        folder = output or cuda_kernel_folder()
        if tensorrt_headers is not None:
            cuda_build.check_headers(tensorrt_headers)
        if flashinfer_headers is not None:
            cuda_build.check_flashinfer(flashinfer_headers)
        choices = {"nvcc": nvcc, "flashinfer": flashinfer_headers}
        with screen.activity(f"compiling for {', '.join(names)}"):
            built = [cuda_build.build_cuda(names, folder, **choices)]
            if tensorrt_headers is not None:
                plugin = cuda_build.build_tensorrt(names, folder, tensorrt_headers, **choices)
                built.append(plugin)
        for one in built:
            _show(one, screen)


def _show(built: Built, screen: Screen) -> None:
    screen.say(f"built {built.library}")
    for warning in built.warnings:
        screen.detail(warning)
    for architecture in dict.fromkeys(one.architecture for one in built.resources):
        kernels = [one for one in built.resources if one.architecture == architecture]
        spilled = sum(one.spilled for one in kernels)
        most = max(one.registers for one in kernels)
        spills = f"{spilled} bytes spilled" if spilled else "no spills"
        screen.say(
            f"  sm_{architecture}: {len(kernels)} kernels, at most {most} registers, {spills}"
        )
        for one in kernels:
            screen.detail(f"    {one.kernel}: {one.registers} registers, {one.spilled} spilled")
