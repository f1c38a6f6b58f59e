"""TensorRT-RTX as an oracle: it parses and builds on a machine without a GPU.

It is run in a process of its own: it keeps its first logger and its plugins as long as that lives.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from mla_opt.engines.manifest import Manifest, read_manifest
from tests.end_to_end.command import PROGRAM, environment
from tests.graphs.latent_block import Block, build

HEADERS_VARIABLE = "MLA_OPT_TENSORRT_HEADERS"
LITE = {"heads": 16, "nope": 128, "rope": 64, "value": 128, "latent": 512, "hidden": 256}
DIMS: dict[str, dict[str, Any]] = {
    "lite": {**LITE, "q_lora": None},
    "v3": {**LITE, "heads": 128, "q_lora": 1536, "hidden": 512},
}
SM = "89"


def package(name: str) -> Path | None:
    """Where a package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


needs_rtx = pytest.mark.skipif(
    package("tensorrt_rtx") is None, reason="needs tensorrt-rtx-cu13, which test installs"
)


def headers() -> Path | None:
    """Headers of TensorRT: the variable names them, or the package kernel-lens has them."""
    named = os.environ.get(HEADERS_VARIABLE)
    if named:
        return Path(named)
    lens = importlib.util.find_spec("kernel_lens")
    places = [] if lens is None else list(lens.submodule_search_locations or ())
    found = [Path(place) / "include" / "tensorrt" for place in places]
    return next((place for place in found if (place / "NvInferRuntime.h").is_file()), None)


needs_headers = pytest.mark.skipif(
    headers() is None or shutil.which("nvcc") is None,
    reason=f"needs nvcc and TensorRT's headers: {HEADERS_VARIABLE}, or kernel-lens without its"
    " dependencies; .ci/run has both",
)


def model(folder: Path, dims: str, **options: Any) -> Path:
    """A file with one latent attention of these dims."""
    path = folder / f"{dims}.onnx"
    onnx.save(build(Block(**{**DIMS[dims], **options})), path)
    return path


def export(source: Path, output: Path, *options: Any) -> str:
    """Run `mla-opt export` with TensorRT-RTX; returns what it said."""
    done = attempt(source, output, "--runtime", "rtx", "--sm", SM, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(source: Path, output: Path, *options: Any) -> subprocess.CompletedProcess[str]:
    """Run `mla-opt export`, whatever comes of it."""
    return process([*PROGRAM, *map(str, ["export", source, "-o", output, *options])])


def process(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that finds TensorRT-RTX."""
    home = package("tensorrt_rtx")
    assert home is not None
    variables = {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], str(home.parent)])}
    return subprocess.run(
        command,
        env=environment(**variables),
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )


def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)
