"""The coverage table: every export, optimized and verified.

    python -m tests.exports.sweep --write coverage.md [--resume] [--jobs 2]
    python -m tests.exports.sweep [--family deepseek_v3 ...] [--exporter dynamo ...] [--controls]

Each row runs in a process of its own, so that a crash is a row and not the end; it is a fork of one
that has imported what exporters need (`tests.forked`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests import forked
from tests.exports import cache, matrix
from tests.exports.coverage import Outcome, Row, document, line, read, row_from_json, summary
from tests.exports.spec import ExportSpec

ROW_TIMEOUT = 1800.0
#: Before the one line of JSON in which a row's process reports.
MARK = "ROW "
Job = tuple[Row, tuple[str, ...]]
#: What rows import.
IMPORTED = (
    "mla_opt.api",
    "mla_opt.subject.onnx_model",
    "mla_opt.verification.verifier",
    "onnxscript",
    "sympy",
    "tests.exports.exporters",
    "tests.exports.oracle",
    "torch.onnx._internal.exporter._core",
    "transformers",
)


def optimize(path: Path) -> Outcome:
    """The only place that knows the optimizer: optimize, verify, and read the report."""
    import mla_opt
    from mla_opt.errors import NothingMatchedError

    try:
        report = mla_opt.optimize(loaded(path), verify=True).report
    except NothingMatchedError as error:
        return Outcome(0, None, cache.report_failure(error))
    except Exception as error:
        return Outcome(0, None, cache.report_failure(error), failed=True)
    reasons = dict.fromkeys(f"{refusal.code}: {refusal.reason}" for refusal in report.refusals)
    return Outcome(len(report.sites), largest_error(report.verification), "; ".join(reasons))


def loaded(path: Path) -> Any:
    """A program where the file holds one; ONNX files are read by the optimizer."""
    if path.suffix != ".pt2":
        return str(path)
    import torch

    return torch.export.load(path)


def run_once(spec: ExportSpec, path: Path) -> str:
    """Why ONNX Runtime cannot run an export at all; empty if it can."""
    import onnxruntime

    from tests.exports import oracle

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    feed = oracle.example_feeds(spec, 2, 5, 3 if spec.cache else 0)
    try:
        oracle.run_onnx(onnxruntime.InferenceSession(str(path), options), feed)
    except Exception as error:
        return cache.report_failure(error)
    return ""


def largest_error(verification: Any) -> float | None:
    """The largest `max_abs` anywhere in a parity report; None if there is none."""
    if isinstance(verification, Mapping):
        own = [verification["max_abs"]] if "max_abs" in verification else []
        found = own + [largest_error(value) for value in verification.values()]
    elif isinstance(verification, (list, tuple)):
        found = [largest_error(value) for value in verification]
    else:
        return None
    return max((error for error in found if error is not None), default=None)


def spec_row(spec: ExportSpec) -> Row:
    """The row of a spec before anything is known of it."""
    from tests.exports.families import FAMILIES

    exporter = spec.exporter if spec.component == "model" else f"{spec.exporter} {spec.component}"
    kept = "yes" if spec.cache else "no"
    labels = (spec.family, exporter, str(spec.opset), spec.attention, kept, spec.dtype)
    return Row(labels, FAMILIES[spec.family].sites)


def third_party_row(name: str, exporter: str) -> Row:
    """The row of another package's attention before anything is known of it."""
    from tests.exports import third_party

    opset = third_party.EXPORTERS[exporter]
    way = exporter.removesuffix(str(opset)) if opset else {"own": "its own"}.get(exporter, exporter)
    kept = "yes" if exporter == "own" else "no"
    family = f"{name} {third_party.version(name)}"
    labels = (family, way, str(opset or ""), "", kept, "float32")
    return Row(labels, third_party.LAYERS)


def control_row(name: str, opset: int) -> Row:
    """The row of a control before anything is known of it."""
    return Row((f"control: {name}", "dynamo", str(opset), "", "", "float32"), 0)


def fill(
    row: Row, export: Callable[[], Path], export_only: bool, spec: ExportSpec | None = None
) -> Row:
    """Export and, if that worked, optimize; a file that cannot be run is no export."""
    try:
        path = export()
    except (cache.ExportError, LookupError) as error:
        return dataclasses.replace(row, export=str(error))
    if export_only:
        return row
    filled = dataclasses.replace(row, outcome=optimize(path))
    defect = "" if spec is None or filled.good else run_once(spec, path)
    return dataclasses.replace(row, export=f"does not run: {defect}") if defect else filled


def run_apart(row: Row, *arguments: str) -> Row:
    """The row as another process fills it; the death of that process becomes its text."""
    places: dict[str, Any] = {"environment": os.environ, "cwd": cache.ROOT, "timeout": ROW_TIMEOUT}
    try:
        done = forked.run(_context(), main, [arguments], **places)
    except subprocess.TimeoutExpired:
        return _died(row, f"no result within {ROW_TIMEOUT:.0f} s")
    for text in done.stdout.splitlines():
        if text.startswith(MARK):
            return row_from_json(text.removeprefix(MARK))
    return _died(row, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])


@functools.cache
def _context() -> ForkServerContext:
    return forked.context(IMPORTED)


def _died(row: Row, why: str) -> Row:
    return dataclasses.replace(row, outcome=Outcome(0, None, why[:300], failed=True))


def selected(options: argparse.Namespace) -> list[ExportSpec]:
    """The specs the command line asks for."""
    return [
        spec
        for spec in matrix.specs()
        if (not options.family or spec.family in options.family)
        and (not options.exporter or spec.exporter in options.exporter)
    ]


def sweep(options: argparse.Namespace) -> list[Row]:
    """All rows, each printed and written as it comes."""
    flags = ["--export-only"] if options.export_only else []
    wanted = jobs(options)
    rows = kept(options)
    known = {row.labels for row in rows}
    left = [(row, (*arguments, *flags)) for row, arguments in wanted if row.labels not in known]
    for row in _filled(left, options.jobs):
        rows.append(row)
        print(line(row.cells()), flush=True)
        write(options, rows)
    return rows


def _filled(left: Sequence[Job], count: int) -> Iterator[Row]:
    """Rows in order, so many at a time."""
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(lambda job: run_apart(job[0], *job[1]), left)


def kept(options: argparse.Namespace) -> list[Row]:
    """The rows that an earlier sweep wrote, if this one goes on with it."""
    there = options.resume and options.write and options.write.exists()
    return read(options.write.read_text()) if there else []


def write(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """The document of the rows so far, if one is asked for."""
    if options.write:
        whole = len([*spec_jobs(matrix.specs()), *third_party_jobs(), *control_jobs()])
        options.write.write_text(document(rows, whole))


def jobs(options: argparse.Namespace) -> list[Job]:
    """The families, other packages, the controls; or those alone that are asked for."""
    if options.third_party:
        return third_party_jobs()
    families = [] if options.controls else [*spec_jobs(selected(options)), *third_party_jobs()]
    some = options.family or options.exporter
    return spec_jobs(selected(options)) if some else [*families, *control_jobs()]


def spec_jobs(specs: Sequence[ExportSpec]) -> list[Job]:
    """Each row still empty, and the arguments that make a process compute it."""
    return [(spec_row(spec), ("--row", spec.to_json())) for spec in specs]


def third_party_jobs() -> list[Job]:
    """The same for what other packages write."""
    from tests.exports import third_party

    return [(third_party_row(*pair), ("--third-party-row", *pair)) for pair in third_party.pairs()]


def control_jobs() -> list[Job]:
    """The same for the controls."""
    from tests.exports.controls import matrix as control_matrix

    return [
        (control_row(name, opset), ("--control-row", name, "--opset", str(opset)))
        for name, opset in control_matrix()
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", nargs="*", help="only these families")
    parser.add_argument("--exporter", nargs="*", help="only these exporters")
    parser.add_argument("--controls", action="store_true", help="only the controls")
    parser.add_argument("--third-party", action="store_true", help="only other packages")
    parser.add_argument("--export-only", action="store_true", help="fill the cache, no optimizer")
    parser.add_argument("--write", type=Path, help="where to put the Markdown table")
    parser.add_argument("--resume", action="store_true", help="keep the rows written before")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--list", action="store_true", help="print the ids and stop")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--control-row", help=argparse.SUPPRESS)
    parser.add_argument("--third-party-row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--opset", type=int, default=18, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or one row of it; exit status 1 if a row is left unexplained."""
    options = parse(arguments)
    if options.list:
        print("\n".join(spec.id for spec in selected(options)))
        return 0
    if options.row or options.control_row or options.third_party_row:
        print(MARK + json.dumps(dataclasses.asdict(_one(options))))
        return 0
    rows = sweep(options)
    write(options, rows)
    print(summary(rows), end="")
    return 0 if options.export_only or all(row.good for row in rows) else 1


def _one(options: argparse.Namespace) -> Row:
    if options.control_row:
        from tests.exports.controls import exported_control

        name, opset = options.control_row, options.opset
        row = control_row(name, opset)
        return fill(row, lambda: exported_control(name, opset), options.export_only)
    if options.third_party_row:
        from tests.exports import third_party

        name, way = options.third_party_row
        row = third_party_row(name, way)
        return fill(row, lambda: third_party.exported(name, way), options.export_only)
    spec = ExportSpec.from_json(options.row)
    return fill(spec_row(spec), lambda: cache.exported_here(spec), options.export_only, spec)


if __name__ == "__main__":
    sys.exit(main())
