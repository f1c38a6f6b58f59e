"""Compiles the CUDA library, and the TensorRT plugin where there are headers: `build-kernels`.

``libmla_opt_cuda.so`` holds the C ABI of ``cuda/latent_attention_cuda.h`` and the custom operator
for ONNX Runtime, on CUDA and on the CPU. ``libmla_opt_tensorrt.so`` holds the plugin, with the
kernels. Neither CUDA nor TensorRT is needed to load them: CUDA's runtime is linked in, and what the
plugin calls of TensorRT is given to it by who loads it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mla_opt.errors import InputError
from mla_opt.kernels.building.build import HOME
from mla_opt.kernels.building.elf import needed_libraries
from mla_opt.kernels.building.nvcc import Nvcc, Resources, find_nvcc, read_resources, read_warnings
from mla_opt.kernels.cuda_library import CUDA_LIBRARY_NAME
from mla_opt.kernels.trust import remember

TENSORRT_LIBRARY_NAME = "libmla_opt_tensorrt.so"
CUDA_FOLDERS = ("cuda",)
HOST_FOLDERS = ("cpu", "onnxruntime", "onnxruntime_cuda")
TENSORRT_FOLDER = "tensorrt"
FLASHINFER_FOLDER = "flashinfer"
# Its kernel, and what that needs of CUDA's C++ library in a release that nvcc may not bring.
FLASHINFER_HEADERS = (
    "include/flashinfer/attention/mla.cuh",
    "include/flashinfer/attention/mla_params.cuh",
    "cccl/libcudacxx/include/cuda/cmath",
)
# The first with cache outputs that alias inputs.
OLDEST_TENSORRT = (10, 3)
_OPTIONS = ("-std=c++17", "-O3", "-Xptxas=-v", "-Wno-deprecated-gpu-targets")
_HOST_OPTIONS = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread")
# Nothing of CUDA's runtime is to be seen, or found, by others in the process.
_LINK_OPTIONS = ("-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL")


@dataclass(frozen=True, slots=True)
class Built:
    """One library, what its kernels take, and what the compiler warned of."""

    library: Path
    resources: tuple[Resources, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    nvcc: Nvcc
    architectures: tuple[str, ...]
    folder: Path
    options: tuple[str, ...] = ()


def build_cuda(
    architectures: Sequence[str],
    folder: Path,
    *,
    nvcc: Path | None = None,
    flashinfer: Path | None = None,
) -> Built:
    """Compile ``libmla_opt_cuda.so`` into ``folder``; it appears whole or not at all.

    Args:
        architectures: as `mla_opt.kernels.building.nvcc.parse_architectures` returns them.
        folder: made if it is not there.
        nvcc: the compiler, if not the one that is found.
        flashinfer: the folder ``flashinfer/data`` of FlashInfer's package, if its kernel is to
            compute what it can (`mla_opt/kernels/flashinfer/work.h`).

    Raises:
        InputError: there is no compiler that can, or it fails; the message ends with what it said.
    """
    folders = (*CUDA_FOLDERS, *HOST_FOLDERS)
    return _build(CUDA_LIBRARY_NAME, folders, architectures, folder, nvcc, flashinfer)


def build_tensorrt(
    architectures: Sequence[str],
    folder: Path,
    headers: Path,
    *,
    nvcc: Path | None = None,
    flashinfer: Path | None = None,
) -> Built:
    """Compile ``libmla_opt_tensorrt.so`` against the TensorRT headers in ``headers``.

    Raises:
        InputError: as `build_cuda`; or the headers are none, or too old.
    """
    check_headers(headers)
    if not any(_sources((TENSORRT_FOLDER,))):
        raise InputError("this release of mla-opt has no TensorRT plugin to compile")
    folders = (*CUDA_FOLDERS, TENSORRT_FOLDER)
    options = (f"-I{headers}",)
    built = _build(TENSORRT_LIBRARY_NAME, folders, architectures, folder, nvcc, flashinfer, options)
    linked = [name for name in needed_libraries(built.library) if "nvinfer" in name]
    if linked:
        built.library.unlink()
        raise InputError(f"{built.library} would be linked with {', '.join(linked)}, and must not")
    return built


def check_headers(headers: Path) -> tuple[int, int]:
    """Return the version of the TensorRT headers in a folder.

    Raises:
        InputError: they are not there, or too old.
    """
    for name in ("NvInferRuntime.h", "NvInferVersion.h"):
        if not (headers / name).is_file():
            raise InputError(f"--tensorrt-headers: {headers} has no {name}")
    text = (headers / "NvInferVersion.h").read_text(errors="replace")
    found = [_defined(text, part) for part in ("MAJOR", "MINOR")]
    if None in found:
        raise InputError(f"--tensorrt-headers: {headers / 'NvInferVersion.h'} says no version")
    version = (int(found[0] or 0), int(found[1] or 0))
    if version < OLDEST_TENSORRT:
        raise InputError(
            f"--tensorrt-headers: {headers} is of TensorRT {version[0]}.{version[1]}; the plugin"
            f" needs {OLDEST_TENSORRT[0]}.{OLDEST_TENSORRT[1]} or newer"
        )
    return version


def check_flashinfer(headers: Path) -> None:
    """Refuse a folder that is not ``flashinfer/data`` of a release with the kernel that is known.

    Raises:
        InputError: what is missing.
    """
    for name in FLASHINFER_HEADERS:
        if not (headers / name).is_file():
            raise InputError(
                f"--flashinfer-headers: {headers} has no {name}; give the folder flashinfer/data of"
                " the package flashinfer-python, 0.7 or newer"
            )


def _flashinfer_options(headers: Path) -> tuple[str, ...]:
    # As system headers: what they warn of is not ours to change.
    folders = ("include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust")
    return ("-DMLA_OPT_WITH_FLASHINFER", *(f"-isystem={headers / name}" for name in folders))


def _defined(text: str, part: str) -> str | None:
    """The number of a version macro, which may stand for another."""
    pattern = rf"^\s*#\s*define\s+(?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE)\s+(\d+)"
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def _sources(folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((HOME / folder).glob("*")):
            if path.suffix in (".cpp", ".cu"):
                yield path


def _build(
    name: str,
    folders: Sequence[str],
    architectures: Sequence[str],
    folder: Path,
    nvcc: Path | None,
    flashinfer: Path | None,
    options: tuple[str, ...] = (),
) -> Built:
    if flashinfer is not None:
        check_flashinfer(flashinfer)
        folders = (*folders, FLASHINFER_FOLDER)
        options = (*options, *_flashinfer_options(flashinfer))
    compiler = find_nvcc(nvcc)
    compiler.check(architectures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".kernels-") as temporary:
            job = _Job(compiler, tuple(architectures), Path(temporary), options)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = list(pool.map(lambda path: _compile(job, path), _sources(folders)))
            linked = job.folder / name
            objects = [made for made, _ in compiled]
            _run([*_start(job), *_LINK_OPTIONS, "-o", str(linked), *objects])
            linked.replace(folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error.strerror}") from error
    said = "".join(text for _, text in compiled)
    remember(folder / name)
    return Built(folder / name, read_resources(said), read_warnings(said))


def _compile(job: _Job, source: Path) -> tuple[str, str]:
    """The object file, and what nvcc said of the kernels in it."""
    result = str(job.folder / f"{source.parent.name}-{source.stem}.o")
    names = " ".join(job.architectures)
    options = [
        *_OPTIONS,
        f"-Xcompiler={','.join(_HOST_OPTIONS)}",
        f'-DMLA_OPT_CUDA_ARCHITECTURES="{names}"',
        "-DMLA_OPT_WITH_CUDA",
        *job.options,
    ]
    said = _run([*_start(job), *options, "-c", str(source), "-o", result])
    return result, said


def _start(job: _Job) -> list[str]:
    return [str(job.nvcc.path), *_code_options(job.architectures)]


def _code_options(architectures: Sequence[str]) -> list[str]:
    """Machine code of each, and of the newest plain one what newer devices can compile."""
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    plain = [name for name in architectures if name.isdigit()]
    if plain:
        codes.append(f"-gencode=arch=compute_{plain[-1]},code=compute_{plain[-1]}")
    return codes


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-600:]
        raise InputError(f"`{shlex.join(command)}` failed with {done.returncode}: {said}")
    return done.stdout + done.stderr
