"""ONNX Runtime, from the oldest release that is supported to the newest, Python and JavaScript.

By function bodies, which is all that JavaScript has, and by the kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest

import mla_opt
from mla_opt.operator.contract import OP_TYPES
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPES
from tests.runtimes_matrix import exchange
from tests.runtimes_matrix.forms import FORMS, Case

HERE = Path(__file__).parent
#: Opset 24 is newer than the oldest release.
OLD = [
    Case(block, form, "onnxruntime") for block in ("boolean-17", "shared cache") for form in FORMS
]
NEW = [
    Case(block, form, target)
    for block, target in (("boolean-24", "onnxruntime"), ("shared cache", "portable"))
    for form in FORMS
]
FAST = [
    Case("shared cache", "auto", "onnxruntime"),
    Case("boolean-24", "even", "onnxruntime"),
    Case("boolean-24", "static", "onnxruntime"),
]
#: Packages of npm, as of 1.30.
JAVASCRIPT = ("onnxruntime-node", "onnxruntime-web")


def written(folder: Path, cases: list[Case]) -> Path:
    for case in cases:
        exchange.write(folder, case)
    return folder


@pytest.fixture(scope="module")
def old_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("old"), OLD)


@pytest.fixture(scope="module")
def new_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("new"), NEW)


def run_python(folder: Path, packages: Path | None, *library: str) -> str:
    """Run a folder; returns the version of ONNX Runtime."""
    command = [sys.executable, str(HERE / "run_onnxruntime.py"), str(folder), *library]
    given = {} if packages is None else {"PYTHONPATH": str(packages)}
    done = subprocess.run(
        command, env=os.environ | given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()[-1]


def check_kernels(folder: Path, case: Case) -> None:
    """Every attention of the file is still there, and no other body was put in its place."""
    kept = onnx.load(folder / f"{case.id}.optimized")
    count = Counter(operators(kept.graph))
    fused = case.target == "onnxruntime" and FORMS[case.form].get("absorb") != "none"
    ours = sum(count[name] for name in (*OP_TYPES, *MULTI_HEAD_OP_TYPES))
    assert ours == (2 if fused else 0), case.id


def operators(graph: onnx.GraphProto) -> list[str]:
    inner = (each.g for node in graph.node for each in node.attribute if each.HasField("g"))
    return [node.op_type for node in graph.node] + [
        name for branch in inner for name in operators(branch)
    ]


def check_python(folder: Path, cases: list[Case], packages: Path | None, version: str) -> None:
    for library in ((), (str(mla_opt.kernel_library()),)):
        assert run_python(folder, packages, *library) == version or not version
        for case in cases:
            exchange.check(folder, case)
            if library:
                check_kernels(folder, case)


def test_here(tmp_path: Path) -> None:
    check_python(written(tmp_path, FAST), FAST, None, "")


@pytest.mark.old_onnxruntime
def test_the_oldest_release(old_models: Path, tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime==1.20.1")
    check_python(old_models, OLD, tmp_path, "1.20.1")


@pytest.mark.old_onnxruntime
def test_the_newest_release(new_models: Path, tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime")
    check_python(new_models, NEW, tmp_path, "")


def install(folder: Path, package: str) -> None:
    """Put a package from PyPI into a folder; what it needs is here."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, package], check=True)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of npm; their scripts would only fetch what CUDA needs."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text("{}")
    options = ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options, *JAVASCRIPT], cwd=folder, check=True)
    return folder


@pytest.mark.other_runtimes
@pytest.mark.parametrize("name", JAVASCRIPT)
def test_javascript(new_models: Path, packages: Path, name: str) -> None:
    command = ["node", str(HERE / "run_javascript.mjs"), str(packages), name, str(new_models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for case in NEW:
        exchange.check(new_models, case)
