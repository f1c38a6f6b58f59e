"""One call on a machine with a GPU: check, sanitize, measure, and print the table last.

    python -m tests.gpu [-o DIR] [--seconds 450] [--only checks|quick|bench] [--arch 90]

Exit code 1: something is wrong. Missed targets are told and are no error. Everything printed also
goes to DIR/gpu.log, and the numbers to DIR/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.gpu import benchmark, cases, checks, sanitizer
from tests.gpu.driver import Device, DriverError, device_reason
from tests.gpu.kernels import Runner, library_for
from tests.kernels.cuda.problems import Case, check

RANDOM_CASES = 60
SANITIZER_SECONDS = 45.0


class Log:
    """Says things, and keeps them in a file where one is wanted."""

    def __init__(self, folder: Path | None) -> None:
        self._file = (folder / "gpu.log").open("w") if folder else None

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self._file:
            print(line, file=self._file, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    started = time.monotonic()
    reason = device_reason()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    log = Log(options.output)
    device = Device()
    runner = Runner(device, library_for(device, options.arch))
    log.say(f"{device.name}, architecture {device.architecture}, {device.multiprocessors}"
            f" multiprocessors; kernels for {', '.join(runner.library.architectures)}")  # fmt: skip
    wrong = 0
    if options.only in ("all", "checks", "quick"):
        wrong += run_checks(runner, log, quick=options.only == "quick")
    if options.only == "all":
        wrong += run_sanitizer(log)
    if options.only in ("all", "bench"):
        run_benchmark(runner, log, started + options.seconds, options.output)
    log.say(f"{'FAILED: ' + str(wrong) if wrong else 'all right'},"
            f" {time.monotonic() - started:.0f} s")  # fmt: skip
    return 1 if wrong else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    default = os.environ.get("OUT")
    parser.add_argument("-o", "--output", type=Path, default=Path(default) if default else None)
    parser.add_argument("--seconds", type=float, default=450.0)
    parser.add_argument(
        "--arch", help="compile for this architecture here, rather than use a library"
    )
    parser.add_argument("--only", choices=("all", "checks", "quick", "bench"), default="all")
    return parser.parse_args(arguments)


def run_checks(runner: Runner, log: Log, *, quick: bool) -> int:
    """Run every case; returns how many are wrong."""
    work: dict[str, Callable[[], None]] = {
        name: _checking(runner, case)
        for name, case in (cases.QUICK if quick else cases.ALL).items()
    }
    if not quick:
        for seed in range(RANDOM_CASES):
            work[f"random {seed}"] = _checking(runner, cases.random_case(seed))
        work["graph, narrow"] = lambda: checks.check_graph(runner, 16)
        work["graph, wide"] = lambda: checks.check_graph(runner, 128)
        work["streams"] = lambda: checks.check_streams(runner)
    failed = 0
    for name, check_one in work.items():
        try:
            check_one()
        except DriverError as error:
            # The context is lost: nothing that follows would mean anything.
            log.say(f"WRONG {name}: {error}")
            return failed + 1
        except Exception:
            failed += 1
            log.say(f"WRONG {name}: {traceback.format_exc()[-800:]}")
    log.say(f"{len(work) - failed} of {len(work)} checks against float64 hold")
    return failed


def _checking(runner: Runner, case: Case) -> Callable[[], None]:
    return lambda: check(case, *runner.run(case))


def run_sanitizer(log: Log) -> int:
    """Run the tools; returns how many found something."""
    found = 0
    for name, content, said in sanitizer.run(SANITIZER_SECONDS):
        word = {True: "clean", False: "FOUND SOMETHING", None: "did not run"}[content]
        log.say(f"compute-sanitizer {name}: {word}" + ("" if content else f": {said}"))
        found += content is False
    return found


def run_benchmark(runner: Runner, log: Log, until: float, folder: Path | None) -> None:
    """Measure and print; the table comes last."""
    rates = benchmark.measure(runner.device)
    rows = []
    for row in benchmark.run(runner.device, runner.library, benchmark.points(), until):
        rows.append(row)
        if folder:
            (folder / "gpu.json").write_text(json.dumps(benchmark.to_json(rows, rates), indent=1))
    product = f"{rates.product / 1e12:.0f} TFLOP/s" if rates.product else "not measured"
    log.say(f"copying {rates.copy / 1e9:.0f} GB/s, float16 product {product}")
    for missed in benchmark.targets(rows, rates):
        log.say(f"missed: {missed}")
    log.say(benchmark.HEADER)
    for row in sorted(rows, key=lambda r: (r.point.heads, r.point.keys, r.point.batch)):
        log.say(benchmark.line(row, rates))


if __name__ == "__main__":
    sys.exit(main())
