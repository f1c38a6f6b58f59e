"""The ONNX files that are measured: built once, kept in a cache folder.

Everything is built in a process of its own, so that torch, transformers and half-finished weights
are gone before anything is timed. Models made by mla-opt itself are made anew each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.dims import Dims

ROOT = Path(__file__).parents[2]
CACHE_VARIABLE, OLD_PYTHON_VARIABLE = "MLA_OPT_BENCH_CACHE", "MLA_OPT_TRANSFORMERS_457_PYTHON"
EXPORTER = Path(__file__).with_name("export_deepseek.py")
HANDMADE = Path(__file__).with_name("handmade.py")
OPSET = 23
#: Characters of an error message that are shown.
LONGEST = 300
OLD_OPSET = 18


class BuildError(Exception):
    """A model could not be made; says which and why."""


def cache_folder() -> Path:
    """Where models are kept between runs."""
    folder = Path(os.environ.get(CACHE_VARIABLE, ROOT / ".export_cache" / "bench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(dims: Dims, kind: str, builder: Path) -> Path:
    """One folder for each model and each version of what builds it; external data lies beside."""
    return cache_folder() / f"{kind}-{dims.layers}layers-{key_of(dims.to_json(), builder)}"


def key_of(what: str, builder: Path) -> str:
    """Twelve digits that change with what is built, and with what builds it."""
    return hashlib.sha256(what.encode() + builder.read_bytes()).hexdigest()[:12]


def run(command: Sequence[str], what: str) -> None:
    """Run a builder, quietly unless it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise BuildError(f"{what}: {lines[-1][:LONGEST]}")


def cached(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder/model.onnx`, made beside and renamed when complete."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            start = time.perf_counter()
            make(partial / "model.onnx")
            (partial / "seconds").write_text(f"{time.perf_counter() - start:.1f}\n")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "model.onnx"


def exported(dims: Dims, opset: int = OPSET) -> Path:
    """The export of the current transformers: latent cache, re-expanded at every step."""

    def make(path: Path) -> None:
        run([sys.executable, str(EXPORTER), dims.to_json(), str(opset), str(path)], "export")

    return cached(folder_of(dims, f"export{opset}", EXPORTER), make)


def old_python() -> str | None:
    """The interpreter that has transformers 4.57, if there is one."""
    return os.environ.get(OLD_PYTHON_VARIABLE)


def exported_expanded_cache(dims: Dims, opset: int = OLD_OPSET) -> Path | None:
    """The export of transformers 4.57, which caches expanded keys and values; None without it."""
    python = old_python()
    if python is None:
        return None

    def make(path: Path) -> None:
        run(
            [python, str(EXPORTER), dims.to_json(), str(opset), str(path)],
            "export with transformers 4.57",
        )

    return cached(folder_of(dims, f"export457-{opset}", EXPORTER), make)


def handmade(dims: Dims, form: str) -> Path:
    """The graph of `handmade.py`."""

    def make(path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.handmade",
            dims.to_json(),
            form,
            str(path),
        ]
        run(command, f"hand-made {form}")

    return cached(folder_of(dims, f"handmade-{form}", HANDMADE), make)


def optimized(source: Path, **options: str) -> Path:
    """What `mla_opt.optimize` makes of a model."""
    label = "-".join(["mla", *options.values()])
    folder = source.parent.with_name(f"{source.parent.name}.{label}")
    shutil.rmtree(folder, ignore_errors=True)

    def make(path: Path) -> None:
        arguments = [f"{key}={value}" for key, value in options.items()]
        command = [sys.executable, "-m", "tests.benchmarks.optimize_model", str(source), str(path)]
        run([*command, *arguments], f"mla_opt.optimize({', '.join(arguments)})")

    return cached(folder, make)
