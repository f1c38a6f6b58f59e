"""The compiled kernels: built or not, from which sources, and what of them this machine runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mla_opt.doctor.report import KernelLibrary, LibraryState
from mla_opt.errors import KernelUnavailableError
from mla_opt.kernels.building.build import LIBRARY, is_current
from mla_opt.kernels.building.cuda_build import TENSORRT_LIBRARY_NAME
from mla_opt.kernels.cuda_library import CUDA_LIBRARY_NAME, cuda_kernel_folder, load_cuda_library
from mla_opt.kernels.library import cpu_tier, cpu_tiers
from mla_opt.kernels.trust import check_library

BUILD_CPU = "python -m mla_opt.kernels"
#: For 9.0, whose own matrix instructions need a name of their own.
HOPPER, HOPPER_NAME = 90, "90a"


def libraries(compute_capability: int | None = None) -> tuple[KernelLibrary, ...]:
    """For ONNX Runtime and PyTorch on CPUs, for PyTorch on GPUs, and for TensorRT.

    ``compute_capability`` is that of the GPU to build for, as one number; Hopper's if not given.
    """
    folder = cuda_kernel_folder()
    named = compute_capability not in (None, HOPPER)
    build = f"mla-opt build-kernels --arch {compute_capability if named else HOPPER_NAME}"
    plugin = f"{build} --tensorrt-headers DIR"
    return (
        _cpu(),
        _of_gpus("CUDA", folder / CUDA_LIBRARY_NAME, build, _architectures),
        _of_gpus("TensorRT", folder / TENSORRT_LIBRARY_NAME, plugin, _trusted),
    )


def _cpu() -> KernelLibrary:
    path = str(LIBRARY)
    if not LIBRARY.exists():
        return KernelLibrary("CPU", path, "absent", (), None, None, BUILD_CPU)
    try:
        tiers, used = cpu_tiers(), cpu_tier()
    except KernelUnavailableError as error:
        return KernelLibrary("CPU", path, "unusable", (), None, str(error), BUILD_CPU)
    state: LibraryState = "current" if is_current() else "stale"
    return KernelLibrary("CPU", path, state, tiers, used, None, BUILD_CPU)


def _of_gpus(
    name: str, path: Path, command: str, look: Callable[[Path], tuple[str, ...]]
) -> KernelLibrary:
    if not path.exists():
        return KernelLibrary(name, str(path), "absent", (), None, None, command)
    try:
        return KernelLibrary(name, str(path), "built", look(path), None, None, command)
    except KernelUnavailableError as error:
        return KernelLibrary(name, str(path), "unusable", (), None, str(error), command)


def _architectures(path: Path) -> tuple[str, ...]:
    return load_cuda_library(path.parent).architectures


def _trusted(path: Path) -> tuple[str, ...]:
    """The plugin is opened by TensorRT alone; here it is only seen whether it may be."""
    check_library(path)
    return ()
