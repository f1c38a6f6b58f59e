"""Memory and time of `mla-opt verify` as a model gets deeper: DeepSeek-V3's attentions.

    python -m tests.benchmarks.verify_scale [--layers N ...] [--kinds float32 float16 4bit]
        [--extents whole by-layer] [--record benchmarks.md]

Each model is made, optimized, and verified from file to file in a process of its own, whole or by
layer. A layer takes 0.7 GB of disk in float32, twice. Prints one row a run. Where memory does not
hold both models, `verify` goes by layer by itself: "whole" is only for models that fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mla_opt.benchmarking import machine
from tests.benchmarks import command_run, deep_model, record
from tests.benchmarks.dims import V3
from tests.benchmarks.runner import THREADS

#: By name, what the command is told.
EXTENTS = {"whole": [], "by-layer": ["--by-layer"]}
COLUMNS = (
    "| model | layers | verified | both models MB | peak MB | of both models | s | CPU s |\n"
    "|---|---:|---|---:|---:|---:|---:|---:|"
)


def row(kind: str, layers: int, extent: str, both_mb: float, took: command_run.Took) -> str:
    """A row of a table in Markdown."""
    cells = [kind, str(layers), extent, f"{both_mb:.0f}", f"{took.peak_mb:.0f}"]
    cells += [f"{took.peak_mb / both_mb:.2f}", f"{took.seconds:.0f}", f"{took.cpu_seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


def measure(kind: str, layers: int, extents: Sequence[str], folder: Path) -> Iterator[str]:
    """Make, optimize and verify one model; a row for each way."""
    source, target = folder / "model.onnx", folder / "optimized.onnx"
    deep_model.make(kind, dataclasses.replace(V3, layers=layers), source, solid=True)
    command_run.run(["optimize", str(source), "-o", str(target), "--no-verify", "--quiet"])
    both_mb = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    for extent in extents:
        took = command_run.run(["verify", str(source), str(target), *EXTENTS[extent]])
        yield row(kind, layers, extent, both_mb, took)


def rows(options: argparse.Namespace) -> Iterator[str]:
    """Of all models."""
    for kind in options.kinds:
        for layers in options.layers:
            with tempfile.TemporaryDirectory(prefix="deep-", dir=options.folder) as made:
                yield from measure(kind, layers, options.extents, Path(made))


def main(arguments: Sequence[str]) -> None:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kinds", nargs="+", choices=deep_model.KINDS, default=["float32"])
    parser.add_argument("--extents", nargs="+", choices=list(EXTENTS), default=list(EXTENTS))
    parser.add_argument("--folder", type=Path, help="on the disk to use")
    record.add_option(parser)
    options = parser.parse_args(arguments)
    table = [COLUMNS]
    print(COLUMNS)
    for each in rows(options):
        print(each, flush=True)
        table.append(each)
    if options.record:
        command = record.command_line("tests.benchmarks.verify_scale", arguments, ("--folder",))
        about = machine.measure(THREADS)
        record.keep(options.record, about, "memory of verification", command, ["\n".join(table)])


if __name__ == "__main__":
    main(sys.argv[1:])
