"""The compiled plugin: found, and asked what it can do before anything is built with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.geometry import MlaGeometry
from mla_opt.kernels.building.cuda_build import TENSORRT_LIBRARY_NAME
from mla_opt.kernels.cuda_library import (
    WIDTHS,
    CudaLibrary,
    CudaProblem,
    ElementType,
    cuda_kernel_folder,
    cuda_problem,
)

ANY_MULTIPROCESSORS = 1


def default_plugin() -> Path:
    """Where `mla-opt build-kernels --tensorrt-headers` puts the library."""
    return cuda_kernel_folder() / TENSORRT_LIBRARY_NAME


def has_kernel(geometry: MlaGeometry) -> bool:
    """Whether the plugin of this release has a kernel for the widths C and R."""
    return (geometry.kv_lora_rank, geometry.qk_rope_head_dim) in WIDTHS


def listed_widths() -> str:
    """The widths that it has kernels for, in words."""
    return ", ".join(f"C={c} and R={r}" for c, r in WIDTHS)


def check_plugin(
    library: Path, geometries: Iterable[tuple[str, MlaGeometry]], architectures: Sequence[int]
) -> None:
    """Check that a plugin library has code for these attentions on these architectures.

    Code for an architecture also runs on later ones of the same generation (86 on 89), and what a
    library holds of its newest plain one can be compiled for any that is newer.

    Raises:
        InputError: it is not there, is of another version, or lacks something; the message says
            what.
    """
    if not library.is_file():
        wanted = ",".join(map(str, architectures)) or "..."
        raise InputError(
            f"{library}: the plugin library is not there. Build it: mla-opt build-kernels --arch"
            f" {wanted} --tensorrt-headers DIR (it needs nvcc; DIR is the folder with TensorRT's"
            " NvInferRuntime.h). Or name one that you have (--plugin FILE), or use standard"
            " operators (--no-plugin)"
        )
    try:
        opened = CudaLibrary(library)
    except KernelUnavailableError as error:
        raise InputError(f"{library}: is no plugin of this release: {error}") from error
    _check_architectures(library, opened.architectures, architectures)
    for name, geometry in geometries:
        if not opened.workspace_bytes(_decode_step(geometry), ANY_MULTIPROCESSORS):
            raise InputError(
                f"{library}: has no kernel for {name} (C={geometry.kv_lora_rank},"
                f" R={geometry.qk_rope_head_dim}); build it again with this release (mla-opt"
                " build-kernels), or use standard operators (--no-plugin)"
            )


def _check_architectures(library: Path, has: Sequence[str], wanted: Sequence[int]) -> None:
    numbers = [int(name) for name in has if name.isdecimal()]
    lacking = [number for number in wanted if not _runs_on(number, has, numbers)]
    if lacking:
        raise InputError(
            f"{library}: has code for {', '.join(has)}, none for {', '.join(map(str, lacking))};"
            f" build it again (mla-opt build-kernels --arch {','.join(map(str, wanted))}"
            " --tensorrt-headers DIR)"
        )


def _runs_on(number: int, has: Sequence[str], plain: Sequence[int]) -> bool:
    same = any(each // 10 == number // 10 and each <= number for each in plain)
    return same or f"{number}a" in has or number >= max(plain, default=number + 1)


def _decode_step(geometry: MlaGeometry) -> CudaProblem:
    return cuda_problem(
        element_type=ElementType.BFLOAT16,
        batch=1,
        heads=geometry.num_heads,
        query_len=1,
        new_len=1,
        cache_len=1024,
        kv_lora_rank=geometry.kv_lora_rank,
        rope_dim=geometry.qk_rope_head_dim,
        scale=1.0,
        causal=False,
        query=0,
        output=0,
    )
