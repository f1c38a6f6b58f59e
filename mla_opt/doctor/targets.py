"""Which targets can be made and run here, and what the others lack."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mla_opt.doctor.installed import at_least
from mla_opt.doctor.report import Compiler, KernelLibrary, Machine, TargetState

#: The oldest releases that the targets need, as `pyproject.toml` and the README say.
OLDEST = {
    "onnxruntime": "1.20",
    "tensorrt": "11.1",
    "cuda-bindings": "12.8",
    "tritonclient": "2.60",
}
#: What installs a package, where that is not its own name.
_PIP = {"tensorrt-rtx": "tensorrt-rtx-cu13", "tritonclient": "'tritonclient[grpc]'"}
_ANY = "0"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found: versions by package, and the others by their names."""

    machine: Machine
    packages: Mapping[str, str | None]
    compilers: Mapping[str, Compiler]
    libraries: Mapping[str, KernelLibrary]


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is missing, and the command that brings it."""

    what: str
    command: str | None = None


def targets(facts: Facts) -> tuple[TargetState, ...]:
    """The state of every target."""
    onnxruntime, gpu = _package(facts, "onnxruntime"), _gpu(facts)
    cpu, tensorrt = facts.libraries["CPU"], _package(facts, "tensorrt")
    plugin = "the plugin" if _is_usable(facts, "TensorRT") else "standard operators"
    return (
        _target("onnxruntime", "models run by their function bodies", onnxruntime),
        _target(
            "onnxruntime kernel",
            f"models run by the CPU kernels, {cpu.used}",
            (*onnxruntime, *_cpu_kernels(facts)),
        ),
        _target("portable", "models of standard operators are made and checked", onnxruntime),
        _target("torch", "programs run on the CPU", _package(facts, "torch")),
        _target("cuda", "programs run on the GPU", (*_torch_for_gpus(facts), *gpu)),
        _target(
            "tensorrt",
            f"engines are made and run, decode steps by {plugin}",
            (*tensorrt, *_package(facts, "cuda-bindings"), *gpu),
        ),
        _target("rtx", "engines are made, without a GPU", _package(facts, "tensorrt-rtx")),
        _target("triton-server", "repositories are made", _package(facts, "tritonclient")),
    )


def _target(name: str, what: str, lacks: tuple[Lack, ...]) -> TargetState:
    commands = dict.fromkeys(each.command for each in lacks if each.command is not None)
    missing = "; ".join(each.what for each in lacks)
    return TargetState(name, what, not lacks, missing or None, " && ".join(commands) or None)


def _package(facts: Facts, name: str) -> tuple[Lack, ...]:
    found, least = facts.packages[name], OLDEST.get(name, _ANY)
    if at_least(found, least):
        return ()
    command = f"pip install -U {_PIP.get(name, name)}"
    if found is None:
        return (Lack(f"{name} is not installed", command),)
    return (Lack(f"{name} is {found}, and {least} or newer is needed", command),)


def _cpu_kernels(facts: Facts) -> tuple[Lack, ...]:
    library, compiler = facts.libraries["CPU"], facts.compilers["C++"]
    if library.state == "current":
        return ()
    told = {
        "absent": "the kernels are not compiled",
        "stale": "the kernels were compiled from other sources than these",
    }
    lack = Lack(told.get(library.state) or str(library.problem), f"{library.command} --force")
    if compiler.problem is None:
        return (lack,)
    return Lack(compiler.problem, _install_compiler()), lack


def _install_compiler() -> str | None:
    """The command of the system's package manager, where it is one of the usual ones."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    managers = {"apt-get": "g++", "dnf": "gcc-c++", "zypper": "gcc-c++", "apk": "g++"}
    for manager, package in managers.items():
        if shutil.which(manager):
            return f"{manager} {'add' if manager == 'apk' else 'install'} {package}"
    return None


def _torch_for_gpus(facts: Facts) -> tuple[Lack, ...]:
    version = facts.packages["torch"]
    if version is None:
        return _package(facts, "torch")
    if "+cpu" in version:
        return (Lack(f"torch {version} is for CPUs", "pip install --force-reinstall torch"),)
    if facts.packages["triton"] is None and not _is_usable(facts, "CUDA"):
        return _package(facts, "triton")
    return ()


def _is_usable(facts: Facts, library: str) -> bool:
    return facts.libraries[library].state in ("current", "built")


def _gpu(facts: Facts) -> tuple[Lack, ...]:
    return () if facts.machine.gpu is not None else (Lack("no NVIDIA GPU is visible"),)
