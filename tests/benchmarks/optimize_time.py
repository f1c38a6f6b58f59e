"""How long `mla_opt.optimize` takes, beyond reading and writing the file, as the model gets
deeper."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import models
from tests.benchmarks.dims import Dims

REPEATS = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One read, rewrite and write; `cpu_seconds` are of all its threads."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclasses.dataclass(frozen=True)
class Depth:
    """What one depth took; the best of `REPEATS` runs of each."""

    layers: int
    file_mb: float
    plain: Run
    optimized: Run

    @property
    def extra(self) -> float:
        """Seconds beyond reading and writing."""
        return self.optimized.seconds - self.plain.seconds

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        return {**dataclasses.asdict(self), "extra_s": self.extra}


def run_once(source: Path, arguments: Sequence[str]) -> Run:
    """One run in a process of its own; what it writes is thrown away."""
    folder = Path(tempfile.mkdtemp(prefix="optimize-", dir=models.cache_folder()))
    try:
        command = [sys.executable, "-m", "tests.benchmarks.optimize_model"]
        command += [str(source), str(folder / "model.onnx"), *arguments]
        done = subprocess.run(command, cwd=models.ROOT, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise models.BuildError(
            f"mla_opt.optimize on {source.parent.name}: {lines[-1][: models.LONGEST]}"
        )
    report = json.loads(done.stdout.splitlines()[-1])
    return Run(report["make_s"] + report["write_s"], report["cpu_s"], report["peak_mb"])


def best(runs: Sequence[Run]) -> Run:
    """The fastest run."""
    return min(runs, key=lambda run: run.seconds)


def read_through(folder: Path) -> float:
    """Bring the files into the page cache, for every run alike; returns their size in MB."""
    size = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                size += len(chunk)
    return size / 2**20


def measure_depth(dims: Dims) -> Depth:
    """Time one depth, plain and optimized in turns."""
    source = models.exported(dims)
    file_mb = read_through(source.parent)
    pairs = [(run_once(source, ["--plain"]), run_once(source, [])) for _ in range(REPEATS)]
    plain, optimized = zip(*pairs, strict=True)
    return Depth(dims.layers, file_mb, best(plain), best(optimized))


def measure(depths: Sequence[int], dims_of: Callable[[int], Dims]) -> list[Depth]:
    """Every depth."""
    return [measure_depth(dims_of(layers)) for layers in depths]


def slope(depths: Sequence[Depth]) -> float:
    """Extra seconds for each further layer, from the first depth to the last."""
    first, last = depths[0], depths[-1]
    return (last.extra - first.extra) / (last.layers - first.layers)


def bend(depths: Sequence[Depth]) -> float:
    """The slope of the last stretch over that of the whole: 1 for a straight line."""
    return slope(depths[-2:]) / slope(depths)
