"""Packages and compilers that are here: asked of their metadata, and of themselves."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib import metadata

from mla_opt.doctor.report import Compiler, Package
from mla_opt.errors import InputError
from mla_opt.kernels.building.build import BuildError, compiler
from mla_opt.kernels.building.nvcc import find_nvcc

#: What it is called, and the distributions that bring it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "onnx": ("onnx",),
    "onnx-ir": ("onnx-ir",),
    "numpy": ("numpy",),
    "torch": ("torch",),
    "triton": ("triton",),
    "transformers": ("transformers",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "cuda-bindings": ("cuda-bindings",),
    "tritonclient": ("tritonclient",),
    "openvino": ("openvino",),
}
SECONDS = 10


def packages() -> tuple[Package, ...]:
    """Every package of the table."""
    return tuple(Package(name, _version(brought_by)) for name, brought_by in PACKAGES.items())


def _version(distributions: tuple[str, ...]) -> str | None:
    for each in distributions:
        try:
            return metadata.version(each)
        except metadata.PackageNotFoundError:
            continue
    return None


def compilers() -> tuple[Compiler, ...]:
    """The C++ compiler, for the CPU kernels, and nvcc, for those of NVIDIA's GPUs."""
    return _cpp(), _nvcc()


def _cpp() -> Compiler:
    try:
        command = compiler()
        done = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=True,
        )
    except BuildError as error:
        return Compiler("C++", None, None, str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Compiler("C++", shlex.join(command), None, f"cannot be run: {error}")
    first = (done.stdout.splitlines() or [""])[0]
    numbers = re.findall(r"\d+(?:\.\d+)+", first)
    return Compiler("C++", shlex.join(command), numbers[-1] if numbers else None, None)


def _nvcc() -> Compiler:
    try:
        found = find_nvcc()
    except InputError as error:
        return Compiler("nvcc", None, None, str(error))
    return Compiler("nvcc", str(found.path), ".".join(map(str, found.version)), None)


def at_least(version: str | None, least: str) -> bool:
    """Whether a version is there, and no older than another."""
    return version is not None and _numbers(version) >= _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 1.20.0rc1+cpu is (1, 20, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
