"""One call on a machine with a GPU: check, sanitize, measure, and print the table last.

    python -m tests.gpu [-o DIR] [--seconds 450] [--only checks|quick|bench] [--arch 90]
        [--record benchmarks.md]

Ends within --seconds, and 15 more if something hangs; each stage leaves the next its share. Exit
code 1: something is wrong, or hung. Missed targets are told and are no error. Everything printed
also goes to DIR/gpu.log, with a longer table, and the numbers to DIR/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import record
from tests.gpu import benchmark, cases, checks, peers, recorded, sanitizer, summary
from tests.gpu.deadline import Deadline
from tests.gpu.driver import Device, DriverError, device_reason
from tests.gpu.kernels import Runner, library_for
from tests.kernels.cuda.problems import Case, check

RANDOM_CASES = 60
SANITIZER_SECONDS = 45.0
# Of the seconds: when the checks, and when the sanitizer, must have ended.
CHECKS_END, SANITIZER_END = 0.4, 0.6
GRACE = 15.0
# Options that are not told with a record.
PLACES = ("-o", "--output")


class Log:
    """Says things, and keeps them in a file where one is wanted."""

    def __init__(self, folder: Path | None) -> None:
        self._file = (folder / "gpu.log").open("w") if folder else None

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.keep(line)

    def keep(self, line: str) -> None:
        """Only into the file."""
        if self._file:
            print(line, file=self._file, flush=True)


@dataclass
class Measured:
    """What there is to report, at any time, and of which device and kernels."""

    machine: str = ""
    kernels: str = ""
    rows: list[benchmark.Row] = field(default_factory=list)
    rates: benchmark.Rates | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    def report(self, log: Log) -> None:
        rows = list(self.rows)
        if self.rates is not None:
            for line in summary.long_table(rows, self.rates):
                log.keep(line)
        for line in summary.summary(rows, self.rates, self.absent):
            log.say(line)

    def keep(self, path: Path, command: str) -> None:
        """Put the tables into a page of records."""
        if self.rows and self.rates is not None:
            made = recorded.record(command, self.kernels, self.rows, self.rates, self.absent)
            record.write(path, self.machine, made)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    started = time.monotonic()
    reason = device_reason()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    log, measured = Log(options.output), Measured()

    def hung() -> None:
        measured.report(log)
        log.say(f"HUNG: ended after {time.monotonic() - started:.0f} s")

    with Deadline(options.seconds + GRACE, hung):
        wrong = _run(options, log, measured, started)
        if options.only in ("all", "bench"):
            measured.report(log)
    if options.record and not wrong:
        words = sys.argv[1:] if arguments is None else arguments
        measured.keep(options.record, record.command_line("tests.gpu", words, PLACES))
    log.say(f"{'FAILED: ' + str(wrong) if wrong else 'all right'},"
            f" {time.monotonic() - started:.0f} s")  # fmt: skip
    return 1 if wrong else 0


def _run(options: argparse.Namespace, log: Log, measured: Measured, started: float) -> int:
    """All stages that are wanted; returns how many things are wrong."""
    device = Device()
    runner = Runner(device, library_for(device, options.arch))
    measured.machine = f"{device.name} ({device.multiprocessors} multiprocessors)"
    measured.kernels = ", ".join(runner.library.architectures)
    log.say(f"{device.name}, architecture {device.architecture}, {device.multiprocessors}"
            f" multiprocessors; kernels for {measured.kernels}")  # fmt: skip
    wrong = 0
    if options.only in ("all", "checks", "quick"):
        share = CHECKS_END if options.only == "all" else 1.0
        until = started + share * options.seconds
        wrong += run_checks(runner, log, until, quick=options.only == "quick")
    if options.only == "all":
        wrong += run_sanitizer(log, started + SANITIZER_END * options.seconds)
    if options.only in ("all", "bench"):
        run_benchmark(runner, measured, started + options.seconds, options.output)
    return wrong


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    default = os.environ.get("OUT")
    parser.add_argument("-o", "--output", type=Path, default=Path(default) if default else None)
    parser.add_argument("--seconds", type=float, default=450.0)
    parser.add_argument(
        "--arch", help="compile for this architecture here, rather than use a library"
    )
    parser.add_argument("--only", choices=("all", "checks", "quick", "bench"), default="all")
    record.add_option(parser)
    options = parser.parse_args(arguments)
    if options.record and options.only in ("checks", "quick"):
        parser.error(f"--record: nothing is measured with --only {options.only}")
    return options


def run_checks(runner: Runner, log: Log, until: float, *, quick: bool) -> int:
    """Run every case that there is time for; returns how many are wrong."""
    work: dict[str, Callable[[], None]] = {
        name: _checking(runner, case)
        for name, case in (cases.QUICK if quick else cases.ALL).items()
    }
    if not quick:
        for seed in range(RANDOM_CASES):
            work[f"random {seed}"] = _checking(runner, cases.random_case(seed))
        work["graph, narrow"] = lambda: checks.check_graph(runner, 16)
        work["graph, wide"] = lambda: checks.check_graph(runner, 128)
        work["bulk loads"] = lambda: checks.check_bulk_loads(runner)
        work["streams"] = lambda: checks.check_streams(runner)
    failed = made = 0
    for name, check_one in work.items():
        if time.monotonic() > until:
            break
        made += 1
        try:
            check_one()
        except DriverError as error:
            # The context is lost: nothing that follows would mean anything.
            log.say(f"WRONG {name}: {error}")
            return failed + 1
        except Exception:
            failed += 1
            log.say(f"WRONG {name}: {traceback.format_exc()[-800:]}")
    left = f"; no time for {len(work) - made} more" if made < len(work) else ""
    log.say(f"{made - failed} of {made} checks against float64 hold{left}")
    return failed


def _checking(runner: Runner, case: Case) -> Callable[[], None]:
    return lambda: check(case, *runner.run(case))


def run_sanitizer(log: Log, until: float) -> int:
    """Run the tools; returns how many found something."""
    found = 0
    for name, content, said in sanitizer.run(SANITIZER_SECONDS, until):
        word = {True: "clean", False: "FOUND SOMETHING", None: "did not run"}[content]
        log.say(f"compute-sanitizer {name}: {word}" + ("" if content else f": {said}"))
        found += content is False
    return found


def run_benchmark(runner: Runner, measured: Measured, until: float, folder: Path | None) -> None:
    """Measure, and write down every row as soon as it is there."""
    others, measured.absent = peers.available()
    measured.rates = benchmark.measure(runner.device)
    wanted = benchmark.points()
    for row in benchmark.run(runner.device, runner.library, wanted, until, others):
        measured.rows.append(row)
        if folder:
            content = benchmark.to_json(measured.rows, measured.rates, measured.absent)
            (folder / "gpu.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    sys.exit(main())
