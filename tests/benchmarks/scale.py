"""Memory and time of `mla-opt optimize` as a model gets deeper: DeepSeek-V3's attentions.

    python -m tests.benchmarks.scale [--layers N ...] [--kinds float16 4bit] [--weights auto float]
        [--report] [--rounds N] [--record benchmarks.md]

Each model is made, optimized from file to file without verification in a process of its own, copied
with `cp`, and removed again. 61 layers need 31 GB of disk. Prints one row a run, and the memory
that each further layer takes. With `--report` a report is written, for which both models are
hashed; with `--rounds` each model is optimized and copied so many times, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mla_opt.benchmarking import machine
from tests.benchmarks import command_run, deep_model, record
from tests.benchmarks.dims import V3
from tests.benchmarks.runner import THREADS

#: What `optimize` may take: MB, besides twice the largest tensor.
ALLOWED_MB = 1.5e9 / 2**20


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the command line; MB are of 2^20 bytes."""

    kind: str
    weights: str
    layers: int
    file_mb: float
    largest_mb: float
    peak_mb: float
    seconds: float
    cpu_seconds: float
    copy_seconds: float

    @property
    def allowed_mb(self) -> float:
        """What the run may take of memory."""
        return ALLOWED_MB + 2 * self.largest_mb

    def row(self) -> str:
        """A row of a table in Markdown."""
        numbers = (self.file_mb, self.peak_mb, self.allowed_mb)
        times = (self.seconds, self.cpu_seconds, self.copy_seconds)
        cells = [self.kind, self.weights, str(self.layers)]
        cells += [f"{number:.0f}" for number in numbers] + [f"{number:.1f}" for number in times]
        return f"| {' | '.join(cells)} |"


#: What is measured unless said otherwise.
KINDS = ("float16", "4bit")
COLUMNS = (
    "| model | weights | layers | file MB | peak MB | allowed MB | s | CPU s | `cp` s |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|"
)
SLOPE_COLUMNS = "| model | weights | MB each further layer |\n|---|---|---:|"


def measure(kind: str, weights: str, layers: int, source: Path, *, report: bool = False) -> Run:
    """Optimize and copy one model."""
    target = source.with_name("optimized.onnx")
    options = ["--no-verify", "--quiet", "--weights", weights, "-o", str(target)]
    if report:
        options += ["--report", f"{target}.json"]
    took = command_run.run(["optimize", str(source), *options])
    for path in source.parent.glob("optimized.onnx*"):
        path.unlink()
    tape = deep_model.DeepTape(kind)
    deep_model.decoder(tape, dataclasses.replace(V3, layers=1))
    return Run(
        kind,
        weights,
        layers,
        sum(path.stat().st_size for path in source.parent.iterdir()) / 2**20,
        max(each.nbytes for each in tape.stored) / 2**20,
        copy_seconds=_copied(source.parent),
        **dataclasses.asdict(took),
    )


def _copied(folder: Path) -> float:
    """Seconds that copying the files takes, until they are on the disk."""
    target = folder.with_name(f"{folder.name}.copy")
    start = time.perf_counter()
    try:
        subprocess.run(["cp", "-r", "--sparse=never", folder, target], check=True)
        subprocess.run(["sync", "-f", target], check=True)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(target, ignore_errors=True)


def slope(runs: Sequence[Run]) -> float:
    """MB of memory for each further layer, from the first run to the last."""
    return (runs[-1].peak_mb - runs[0].peak_mb) / (runs[-1].layers - runs[0].layers)


def slopes(runs: Sequence[Run]) -> str:
    """A table of what each further layer takes; nothing where there is one depth only."""
    kinds = dict.fromkeys((run.kind, run.weights) for run in runs)
    series = [[run for run in runs if (run.kind, run.weights) == kind] for kind in kinds]
    rows = [
        f"| {each[0].kind} | {each[0].weights} | {slope(each):.2f} |"
        for each in series
        if each[0].layers != each[-1].layers
    ]
    return "\n".join([SLOPE_COLUMNS, *rows]) if rows else ""


def series(kind: str, options: argparse.Namespace) -> list[Run]:
    """Measure one kind of model at every depth; prints a row for each run."""
    runs = []
    for layers in options.layers:
        with tempfile.TemporaryDirectory(prefix="deep-", dir=options.folder) as made:
            source = Path(made, "in", "model.onnx")
            source.parent.mkdir()
            deep_model.make(kind, dataclasses.replace(V3, layers=layers), source)
            for each in [*options.weights] * options.rounds:
                runs.append(measure(kind, each, layers, source, report=options.report))
                print(runs[-1].row(), flush=True)
    return runs


def main(arguments: Sequence[str]) -> None:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 61])
    parser.add_argument("--kinds", nargs="+", choices=deep_model.KINDS, default=KINDS)
    parser.add_argument("--weights", nargs="+", default=["auto", "float"])
    parser.add_argument("--folder", type=Path, help="on the disk to use")
    parser.add_argument("--report", action="store_true", help="write a report, with hashes")
    parser.add_argument("--rounds", type=int, default=1)
    record.add_option(parser)
    options = parser.parse_args(arguments)
    print(COLUMNS)
    runs = [run for kind in options.kinds for run in series(kind, options)]
    print(f"\n{slopes(runs)}")
    if options.record:
        tables = ["\n".join([COLUMNS, *(run.row() for run in runs)]), slopes(runs)]
        command = record.command_line("tests.benchmarks.scale", arguments, ("--folder",))
        about = machine.measure(THREADS)
        record.keep(options.record, about, "memory of optimize", command, tables)


if __name__ == "__main__":
    main(sys.argv[1:])
