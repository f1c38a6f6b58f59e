"""What `mla-opt doctor` finds, what it says is missing, and that it fails at nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest

from mla_opt.cli._app import app
from mla_opt.doctor import DoctorReport, examination, examine, installed, libraries
from mla_opt.doctor import targets as judging
from mla_opt.doctor.installed import PACKAGES, at_least
from mla_opt.doctor.report import Compiler, KernelLibrary, Machine
from mla_opt.doctor.schema import DOCTOR
from mla_opt.doctor.targets import OLDEST, Facts, targets
from mla_opt.engines.cuda_driver import Device
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.kernels import cpu_tier, cpu_tiers
from mla_opt.kernels.building.build import BuildError
from tests.cli.conftest import run  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
TARGETS = [
    "onnxruntime",
    "onnxruntime kernel",
    "portable",
    "torch",
    "cuda",
    "tensorrt",
    "rtx",
    "triton-server",
]


@pytest.fixture(scope="module")
def found() -> DoctorReport:
    return examine()


def by_name(entries):
    return {each.name: each for each in entries}


# What is here


def test_this_machine(found):
    packages = by_name(found.packages)
    assert set(packages) == set(PACKAGES)
    for name in ("onnx", "onnx-ir", "numpy", "onnxruntime"):
        assert packages[name].version == metadata.version(name)
    cpu = by_name(found.libraries)["CPU"]
    assert cpu.state in ("current", "stale")
    assert (cpu.runs, cpu.used) == (cpu_tiers(), cpu_tier())
    assert [each.name for each in found.targets] == TARGETS
    assert by_name(found.targets)["onnxruntime"].ready
    assert all(each.ready == (each.missing is None) for each in found.targets)


def test_the_json_has_the_shape_of_its_schema(found):
    jsonschema.validate(json.loads(found.to_json()), DOCTOR.load())
    assert DoctorReport.from_json(found.to_json()) == found


def test_the_command(run):  # noqa: F811
    done = run("doctor")
    assert done.exit_code == 0, done.stderr
    for word in ("packages", "compilers", "kernels", *TARGETS):
        assert f"\n  {word} " in done.stdout or f"\n{word}\n" in done.stdout
    assert DoctorReport.from_json(run("doctor", "--json").stdout).targets
    assert run("doctor", "--quiet").stdout == ""


def test_nothing_heavy_is_imported():
    heavy = ("torch", "onnx", "onnxruntime", "tensorrt_rtx", "triton", "openvino")
    code = (
        "import sys; from mla_opt.doctor import examine; examine();"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_it_fails_at_nothing(monkeypatch, tmp_path):
    """No package, no compiler, no library, no GPU."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    def no_compiler():
        raise BuildError("no C++ compiler: none of c++, g++, clang++ is on PATH")

    def no_nvcc():
        raise InputError("no CUDA compiler")

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(installed, "compiler", no_compiler)
    monkeypatch.setattr(installed, "find_nvcc", no_nvcc)
    monkeypatch.setattr(libraries, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(libraries, "cuda_kernel_folder", lambda: tmp_path)
    monkeypatch.setattr(judging.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(judging.sys, "platform", "linux")
    report = examine()
    assert not any(each.ready for each in report.targets)
    assert {each.state for each in report.libraries} == {"absent"}
    assert [each.problem is None for each in report.compilers] == [False, False]
    text = "\n".join(report.lines())
    assert "CPU       not built" in text
    assert "pip install -U onnxruntime && apt-get install g++ && python -m mla_opt.kernels" in text
    jsonschema.validate(json.loads(report.to_json()), DOCTOR.load())


# Compilers and libraries


def test_a_compiler_that_does_not_run(monkeypatch):
    monkeypatch.setenv("CXX", "false -x")
    cpp, _ = installed.compilers()
    assert (cpp.command, cpp.version) == ("false -x", None)
    assert cpp.problem.startswith("cannot be run: ")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "No such file" in installed.compilers()[0].problem


def test_nvcc(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    _, found = installed.compilers()
    assert (found.command, found.version, found.problem) == (str(nvcc), "12.9", None)
    nvcc.write_text("#!/bin/sh\necho 'release 11.0, V11.0.1'\n")
    assert "the kernels need 12.0 or newer" in installed.compilers()[1].problem


def test_a_library_of_other_sources(monkeypatch):
    monkeypatch.setattr(libraries, "is_current", lambda: False)
    cpu, *_ = libraries.libraries()
    assert (cpu.state, cpu.used) == ("stale", cpu_tier())


def test_libraries_that_cannot_be_used(monkeypatch, tmp_path):
    def refuse():
        raise KernelUnavailableError("has ABI version 1, this release needs 3")

    for name in ("libmla_opt_cuda.so", "libmla_opt_tensorrt.so"):
        (tmp_path / name).write_bytes(b"no library")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(libraries, "cpu_tiers", refuse)
    monkeypatch.setattr(libraries, "cuda_kernel_folder", lambda: tmp_path)
    cpu, cuda, tensorrt = libraries.libraries()
    assert (cpu.state, cpu.problem) == ("unusable", "has ABI version 1, this release needs 3")
    assert (cuda.state, tensorrt.state) == ("unusable", "unusable")
    assert "was not built here" in cuda.problem
    assert "was not built here" in tensorrt.problem


@pytest.mark.parametrize(("capability", "arch"), [(90, "90a"), (89, "89"), (120, "120")])
def test_a_gpu(monkeypatch, capability, arch):
    monkeypatch.setattr(examination, "current_device", lambda: Device("NVIDIA GPU", capability))
    report = examine()
    assert (report.machine.gpu, report.machine.compute_capability) == ("NVIDIA GPU", capability)
    assert by_name(report.libraries)["CUDA"].command == f"mla-opt build-kernels --arch {arch}"


@pytest.mark.parametrize(
    ("version", "least", "enough"),
    [
        ("1.20.0", "1.20", True),
        ("1.19.2", "1.20", False),
        ("1.9", "1.20", False),
        ("1.21rc1", "1.20", True),
        ("11.1.0.106", "11.1", True),
        ("2.13.0+cpu", "2.13", True),
        ("unknown", "0", False),
        (None, "0", False),
    ],
)
def test_versions(version, least, enough):
    assert at_least(version, least) == enough


# Targets


def facts(**changes) -> Facts:
    """A machine on which everything is ready."""
    return replace(
        Facts(
            Machine("Linux", "x86_64", 8, "NVIDIA H100", 90),
            dict.fromkeys(PACKAGES, "99.0"),
            {name: Compiler(name, name, "1.0", None) for name in ("C++", "nvcc")},
            {name: library(name) for name in ("CPU", "CUDA", "TensorRT")},
        ),
        **changes,
    )


def library(name: str, state: str = "current", problem: str | None = None) -> KernelLibrary:
    return KernelLibrary(name, "/lib.so", state, ("amx", "avx2"), "amx", problem, "build it")


def without(*names: str, version: str | None = None) -> dict[str, str | None]:
    return facts().packages | dict.fromkeys(names, version)


def with_library(name: str, state: str, problem: str | None = None) -> dict[str, KernelLibrary]:
    return facts().libraries | {name: library(name, state, problem)}


def test_everything_is_ready():
    state = by_name(targets(facts()))
    assert all(each.ready and each.command is None for each in state.values())
    assert state["onnxruntime kernel"].what == "models run by the CPU kernels, amx"
    assert state["tensorrt"].what.endswith("decode steps by the plugin")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"packages": without("onnxruntime")},
            {
                "onnxruntime": ("onnxruntime is not installed", "pip install -U onnxruntime"),
                "onnxruntime kernel": (
                    "onnxruntime is not installed",
                    "pip install -U onnxruntime",
                ),
                "portable": ("onnxruntime is not installed", "pip install -U onnxruntime"),
            },
        ),
        (
            {"packages": without("tensorrt", version="10.14.1")},
            {
                "tensorrt": (
                    "tensorrt is 10.14.1, and 11.1 or newer is needed",
                    "pip install -U tensorrt",
                )
            },
        ),
        (
            {"packages": without("torch", "triton")},
            {
                "torch": ("torch is not installed", "pip install -U torch"),
                "cuda": ("torch is not installed", "pip install -U torch"),
            },
        ),
        (
            {"packages": without("torch", version="2.13.0+cpu")},
            {"cuda": ("torch 2.13.0+cpu is for CPUs", "pip install --force-reinstall torch")},
        ),
        (
            {"packages": without("triton"), "libraries": with_library("CUDA", "absent")},
            {"cuda": ("triton is not installed", "pip install -U triton")},
        ),
        ({"packages": without("triton")}, {}),
        (
            {"packages": without("tritonclient", "tensorrt-rtx")},
            {
                "rtx": ("tensorrt-rtx is not installed", "pip install -U tensorrt-rtx-cu13"),
                "triton-server": (
                    "tritonclient is not installed",
                    "pip install -U 'tritonclient[grpc]'",
                ),
            },
        ),
        (
            {"libraries": with_library("CPU", "absent")},
            {"onnxruntime kernel": ("the kernels are not compiled", "build it --force")},
        ),
        (
            {"libraries": with_library("CPU", "stale")},
            {
                "onnxruntime kernel": (
                    "the kernels were compiled from other sources than these",
                    "build it --force",
                )
            },
        ),
        (
            {"libraries": with_library("CPU", "unusable", "has ABI version 1")},
            {"onnxruntime kernel": ("has ABI version 1", "build it --force")},
        ),
        (
            {"machine": Machine("Linux", "x86_64", 8, None, None)},
            dict.fromkeys(("cuda", "tensorrt"), ("no NVIDIA GPU is visible", None)),
        ),
    ],
)
def test_what_is_missing(changes, expected):
    state = targets(facts(**changes))
    lacking = {each.name: (each.missing, each.command) for each in state if not each.ready}
    assert lacking == expected


@pytest.mark.parametrize(
    ("platform", "manager", "command"),
    [
        ("darwin", None, "xcode-select --install && build it --force"),
        ("linux", "apt-get", "apt-get install g++ && build it --force"),
        ("linux", "dnf", "dnf install gcc-c++ && build it --force"),
        ("linux", "apk", "apk add g++ && build it --force"),
        ("linux", None, "build it --force"),
    ],
)
def test_how_a_compiler_is_had(monkeypatch, platform, manager, command):
    monkeypatch.setattr(judging.sys, "platform", platform)
    monkeypatch.setattr(
        judging.shutil, "which", lambda name: f"/bin/{name}" if name == manager else None
    )
    tools = {"C++": Compiler("C++", None, None, "no C++ compiler")}
    lacking = facts(libraries=with_library("CPU", "absent"), compilers=tools)
    state = by_name(targets(lacking))["onnxruntime kernel"]
    assert state.missing == "no C++ compiler; the kernels are not compiled"
    assert state.command == command


def test_no_plugin_is_no_obstacle():
    state = by_name(targets(facts(libraries=with_library("TensorRT", "absent"))))["tensorrt"]
    assert state.ready
    assert state.what.endswith("decode steps by standard operators")


def test_the_oldest_releases_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["tensorrt"], *extras["triton-server"]]
    least = dict(each.split(">=") for each in needed)
    named = {name.split("[")[0]: version for name, version in least.items()}
    assert {name: named[name] for name in OLDEST} == OLDEST


# Typing mistakes, and completion


def test_did_you_mean(run):  # noqa: F811
    assert "Did you mean 'optimize'?" in run("optimise", "m.onnx").stderr
    assert "--target" in run("optimize", "m.onnx", "--targt", "portable").stderr


def test_completion(run, monkeypatch):  # noqa: F811
    from typer.testing import CliRunner

    given = {"_MLA_OPT_COMPLETE": "complete_bash", "COMP_WORDS": "mla-opt do", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name="mla-opt", env=given)
    assert done.stdout.split() == ["doctor"]
    assert "--install-completion" in run("--help").stdout
