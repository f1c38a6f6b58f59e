"""The page of what was measured, `benchmarks.md`, and a run's tables in their place on it.

Below the title, each `##` section is a machine, and each `###` section in it a record: its date,
what was measured, the command, the software, and tables. The newest comes first, of the machines
and of the records of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mla_opt.benchmarking.machine import Machine

TITLE = "# What was measured\n"
_MACHINE = re.compile(r"^(?=## )", re.MULTILINE)
_RECORD = re.compile(r"^(?=### )", re.MULTILINE)
_HEADING = re.compile(r"### \d{4}-\d\d-\d\d: \S")
_COMMAND = re.compile(r"^`([^`\n]+)`$", re.MULTILINE)


class PageError(Exception):
    """A file is not a page of this form."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One run, as the page has it: the heading and all below it."""

    text: str

    def __post_init__(self) -> None:
        line = self.text.partition("\n")[0]
        if not _HEADING.match(line):
            raise PageError(f"a record begins with `### YYYY-MM-DD: `, and not with `{line}`")

    @classmethod
    def of(
        cls, what: str, command: str, conditions: str, tables: Sequence[str], date: str = ""
    ) -> Record:
        """A new one, of today unless `date` is another day."""
        heading = f"### {date or datetime.date.today().isoformat()}: {what}"
        parts = [heading, f"`{command}`", conditions, *tables]
        return cls("".join(f"{part.strip()}\n\n" for part in parts if part.strip()))

    @property
    def date(self) -> str:
        """The day, as in 2026-11-29."""
        return self.text.split()[1].removesuffix(":")

    @property
    def command(self) -> str | None:
        """The first line that is code and nothing else."""
        found = _COMMAND.search(self.text)
        return found and found[1]

    def replaces(self, other: Record) -> bool:
        """Whether both are of the same command and day."""
        return (self.date, self.command) == (other.date, other.command)


@dataclasses.dataclass
class Section:
    """A machine: what stands above its first record, and its records."""

    front: str
    records: list[Record]

    @classmethod
    def parse(cls, text: str) -> Section:
        """Read one. Raises `PageError` if a record has no date, or there is none."""
        front, *records = _RECORD.split(text)
        section = cls(front, [Record(each) for each in records])
        if not records:
            raise PageError(f"`## {section.machine}` has no record")
        return section

    @property
    def machine(self) -> str:
        """The heading."""
        return self.front.partition("\n")[0].removeprefix("## ")

    @property
    def newest(self) -> str:
        """The day of the newest record."""
        return max(record.date for record in self.records)

    def insert(self, made: Record) -> None:
        """Put a record before those that are not newer; one that it replaces goes."""
        kept = [each for each in self.records if not made.replaces(each)]
        newer = sum(each.date > made.date for each in kept)
        self.records = [*kept[:newer], made, *kept[newer:]]

    def __str__(self) -> str:
        return self.front + "".join(record.text for record in self.records)


@dataclasses.dataclass
class Page:
    """The whole page."""

    front: str
    sections: list[Section]

    @classmethod
    def parse(cls, text: str) -> Page:
        """Read a page. Raises `PageError` if it has another form."""
        if not text.startswith(TITLE):
            raise PageError(f"the first line is not `{TITLE.strip()}`")
        front, *machines = _MACHINE.split(text.rstrip("\n") + "\n\n")
        if _RECORD.search(front):
            raise PageError("a record stands before the first machine")
        return cls(front, [Section.parse(each) for each in machines])

    def insert(self, machine: str, made: Record) -> None:
        """Put a record into the section of its machine, which is made if it is not there."""
        same = [each for each in self.sections if _identity(each.machine) == _identity(machine)]
        section = same[0] if same else Section(f"## {machine}\n\n", [])
        section.insert(made)
        others = [each for each in self.sections if each is not section]
        self.sections = sorted([section, *others], key=lambda each: each.newest, reverse=True)

    def __str__(self) -> str:
        return (self.front + "".join(map(str, self.sections))).rstrip("\n") + "\n"


def _identity(machine: str) -> str:
    """The name of a machine without its instructions, which are named in more or fewer words."""
    return re.sub(r"(model \w+)[^)]*", r"\1", machine)


def write(path: Path, machine: str, made: Record) -> None:
    """Put a record into the file, which is written whole or not at all."""
    from mla_opt.files.writing import write_text

    page = Page.parse(path.read_bytes().decode())
    page.insert(machine, made)
    write_text(path, str(page), force=True)


def keep(
    path: Path,
    about: Machine,
    what: str,
    command: str,
    tables: Sequence[str],
    packages: Sequence[str] = (),
) -> None:
    """Put a run on a CPU into the file; `packages` are told with their versions."""
    made = Record.of(what, command, conditions(about, packages), tables)
    write(path, machine_name(about), made)


# The option of a program that measures, and what it tells of a run.


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--record`; a file that is no such page is refused before anything is measured."""
    what = "put the tables into this page, in the form of benchmarks.md"
    parser.add_argument("--record", type=_page, metavar="FILE", help=what)


def refuse_quick(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program if a run is to be recorded that only shows that it works."""
    if options.quick and options.record:
        parser.error("--record: a run with --quick measures too little to be recorded")


def _page(name: str) -> Path:
    path = Path(name)
    try:
        Page.parse(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError, PageError) as error:
        raise argparse.ArgumentTypeError(f"{name} is not a page of records: {error}") from error
    return path


def command_line(module: str, arguments: Sequence[str], places: Sequence[str] = ()) -> str:
    """The command that gives these figures, without options that only name a place."""
    parser = argparse.ArgumentParser(add_help=False)
    for option in ("--record", *places):
        parser.add_argument(option)
    return shlex.join(["python", "-m", module, *parser.parse_known_args(arguments)[1]])


def machine_name(about: Machine) -> str:
    """The heading of a machine."""
    return f"{about.cpu}, {about.cores} cores, {about.memory_gb} GB"


def conditions(about: Machine, packages: Sequence[str] = ()) -> str:
    """Software and rates, on one line."""
    software = [f"ONNX Runtime {about.onnxruntime}", *versions(packages)]
    rates = f"matmul {about.gemm_gflops:.0f} GFLOP/s, memory {about.read_gbps:.0f} GB/s"
    return f"{about.system}; {', '.join(software)}; {about.threads} threads; {rates}."


def versions(packages: Sequence[str]) -> list[str]:
    """Of the packages that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found
