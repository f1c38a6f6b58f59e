"""Measure everything mla-opt claims and print it beside its targets.

    python -m tests.benchmarks [--quick] [--only PART] [--markdown FILE] [--json FILE]
        [--record benchmarks.md]

PARTs are decode, memory, prefill, v3, kernel, sweep, prompts, products, optimize, whole,
whole-lite and two-layers. Models are kept in the folder that MLA_OPT_BENCH_CACHE names;
MLA_OPT_TRANSFORMERS_457_PYTHON names a Python with transformers 4.57. `whole` and `whole-lite` take
6 GB of disk and 20 GB of memory each; llama.cpp takes part in them where `llama-cpp-python`, `gguf`
and `safetensors` are installed, ik_llama.cpp in all but the first where `ik-llama-cpp-python` is.
`--record` puts the tables into the page of what was measured, in the section of the machine, unless
a part failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mla_opt.benchmarking import machine
from tests.benchmarks import figures, models, record, runner
from tests.benchmarks.sections import SECTIONS, Bench
from tests.benchmarks.sheet import figure_sheet
from tests.benchmarks.suite import FULL, QUICK

METHOD = (
    "Times are of whole decoder steps with the cache fed back; variants run in turns, each in its"
    " own process. `clean` re-expands the cache like the original, in a clean graph: once made by"
    " mla-opt, once by hand; gains over it are against the faster of the two."
)
#: Columns when the output is no terminal.
WIDTH = 120


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models; shows that it works")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="one part; may be repeated"
    )
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    parser.add_argument("--json", type=Path, help="also write every number here")
    record.add_option(parser)
    options = parser.parse_args(arguments)
    record.refuse_quick(parser, options)
    return options


def command_line(options: argparse.Namespace) -> str:
    """The command that gives these figures, without where they were written."""
    words = ["python", "-m", "tests.benchmarks"]
    words += ["--quick"] if options.quick else []
    for part in options.only or ():
        words += ["--only", part]
    return shlex.join(words)


def screen(stderr: bool = False) -> Console:
    """A console that is as wide as the tables when nobody looks at it."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def heading(command: str, about: machine.Machine) -> list[str]:
    """Which command on which machine."""
    name, conditions = record.machine_name(about), record.conditions(about)
    return [f"`{command}`", f"{name}; {conditions}", METHOD]


def tables(bench: Bench) -> list[str]:
    """What was measured, and before it what was not."""
    sheets = [figure_sheet(bench.figures), *bench.sheets]
    notes = [f"Skipped: {line}" for line in bench.skipped]
    notes += [f"Failed: {line}" for line in bench.failed]
    return [*notes, *(sheet.to_markdown() for sheet in sheets if sheet.rows)]


def markdown(lines: Sequence[str], bench: Bench) -> str:
    """The whole report."""
    return "\n\n".join([*lines, *tables(bench)])


def as_json(command: str, bench: Bench) -> str:
    """Every number."""
    report = {
        "command": command,
        "machine": dataclasses.asdict(bench.machine),
        "figures": [figure.to_dict() for figure in bench.figures],
        "results": bench.results,
        "skipped": bench.skipped,
        "failed": bench.failed,
    }
    return json.dumps(report, indent=1) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the chosen sections; 1 when a model that should be there could not be made."""
    options = parse(arguments)
    command = command_line(options)
    console, log = screen(), screen(stderr=True)
    start = time.perf_counter()

    def say(line: str) -> None:
        log.print(f"{time.perf_counter() - start:7.1f} s  {line}", markup=False, highlight=False)

    say(f"models are kept in {models.cache_folder()}")
    bench = Bench(
        QUICK if options.quick else FULL, machine.measure(runner.THREADS, options.quick), say
    )
    for name, section in SECTIONS.items():
        if not options.only or name in options.only:
            section(bench)
    for sheet in bench.sheets:
        console.print(sheet.to_rich())
    report(options, command, bench, console)
    return 1 if bench.failed else 0


def report(options: argparse.Namespace, command: str, bench: Bench, console: Console) -> None:
    """Print the summary and write the files asked for."""
    lines = heading(command, bench.machine)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    console.print(figure_sheet(bench.figures).to_rich())
    met, promised = figures.summary(bench.figures)
    console.print(f"{met} of {promised} targets met")
    for line in [*bench.skipped, *bench.failed]:
        console.print(f"not measured: {line}", markup=False)
    if options.markdown:
        options.markdown.write_text(markdown(lines, bench))
    if options.json:
        options.json.write_text(as_json(command, bench))
    if options.record and bench.failed:
        console.print(f"not recorded in {options.record}: a part failed", markup=False)
    elif options.record:
        what = ", ".join(options.only or ("all parts",))
        record.keep(options.record, bench.machine, what, command, tables(bench))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
