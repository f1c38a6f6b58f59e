"""`DoctorReport`: what `mla-opt doctor` tells, and its JSON (``doctor.schema.json``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mla_opt.report.plain import from_plain, to_plain

DOCTOR_SCHEMA_VERSION = 1
LibraryState = Literal["current", "stale", "built", "absent", "unusable"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this runs, in the words of Python's ``platform``; ``gpu`` is the first NVIDIA one."""

    system: str
    machine: str
    cores: int
    gpu: str | None
    compute_capability: int | None


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package; ``version`` is ``None`` where it is not installed."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler: its command and its version, or why it cannot be used."""

    name: str
    command: str | None
    version: str | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """A compiled library of kernels.

    ``state`` is ``current`` where it was built from the sources that are installed, ``stale`` where
    from others, ``built`` where it does not say from which, ``absent``, or ``unusable``, and then
    ``problem`` says why. ``runs`` names what its
    kernels are compiled for and this machine can run, best first: instruction sets of a CPU, or
    architectures of GPUs. ``used`` is the one that is taken. ``command`` builds it.
    """

    name: str
    path: str
    state: LibraryState
    runs: tuple[str, ...]
    used: str | None
    problem: str | None
    command: str


@dataclass(frozen=True, slots=True)
class TargetState:
    """Whether a target can be made, and run, here.

    ``missing`` says what it lacks, ``command`` what would bring that; there is none for a GPU.
    """

    name: str
    what: str
    ready: bool
    missing: str | None
    command: str | None


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All of it."""

    tool_version: str
    python_version: str
    machine: Machine
    packages: tuple[Package, ...]
    compilers: tuple[Compiler, ...]
    libraries: tuple[KernelLibrary, ...]
    targets: tuple[TargetState, ...]
    schema_version: int = DOCTOR_SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> DoctorReport:
        """Read what `to_json` wrote. Raises `ValueError` where it is something else."""
        return from_plain(cls, json.loads(text))

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        where = f"{self.machine.system} {self.machine.machine}, {self.machine.cores} cores"
        yield f"mla-opt {self.tool_version}, Python {self.python_version}, {where}"
        yield from _section("packages", ((p.name, p.version or "-") for p in self.packages))
        yield from _section("compilers", ((c.name, _compiler(c)) for c in self.compilers))
        yield from _section("kernels", ((k.name, _library(k)) for k in self.libraries))
        yield from _section("targets", ((t.name, _target(t)) for t in self.targets))
        commands = [(t.name, t.command) for t in self.targets if t.command is not None]
        if commands:
            yield from _section("to make ready", commands)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    yield f"\n{title}"
    yield from (f"  {name:<{width}}  {told}" for name, told in listed)


def _compiler(compiler: Compiler) -> str:
    if compiler.problem is not None:
        return compiler.problem
    return f"{compiler.command} {compiler.version or ''}".strip()


def _library(library: KernelLibrary) -> str:
    if library.state == "absent":
        return "not built"
    if library.problem is not None:
        return library.problem
    used = f"{library.used}, of " if library.used else ""
    told = {"current": "built from these sources", "stale": "built from other sources than these"}
    return f"{used}{' '.join(library.runs)}; {told.get(library.state, 'built')}".lstrip("; ")


def _target(target: TargetState) -> str:
    return f"ready: {target.what}" if target.ready else f"not ready: {target.missing}"
