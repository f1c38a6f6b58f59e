"""The CUDA compiler: found, asked what it can do, and what it said of the kernels it compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mla_opt.errors import InputError

OLDEST = (12, 0)
# The first with the bfloat16 matrix instructions and the asynchronous copies of the kernels.
OLDEST_ARCHITECTURE = 80
_ARCHITECTURE = re.compile(r"(?:sm_?|compute_?)?(\d{2,3})([af]?)")
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes on one architecture: registers of a thread, bytes of its stack."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spilled: int


@dataclass(frozen=True, slots=True)
class Nvcc:
    """A compiler that can be used."""

    path: Path
    version: tuple[int, int]

    def check(self, architectures: Sequence[str]) -> None:
        """Refuse architectures that this compiler does not know.

        Raises:
            InputError: it names them, and what the compiler has.
        """
        listed = _ask(self.path, "--list-gpu-arch")
        known = sorted({int(number) for number in re.findall(r"compute_(\d+)", listed)})
        unknown = [name for name in architectures if int(name.rstrip("af")) not in known]
        if unknown:
            raise InputError(
                f"{self.path} (CUDA {self.version[0]}.{self.version[1]}) cannot compile for"
                f" {', '.join(unknown)}: it has {', '.join(map(str, known))}; give --arch another,"
                " or --nvcc a newer one"
            )


def parse_architectures(text: str) -> tuple[str, ...]:
    """Return the architectures of ``80,90a,sm_120`` as nvcc's numbers, each once, in order.

    Raises:
        InputError: one is not written so, is older than the kernels need, or is given in two forms:
            a library holds one kind of code for a device.
    """
    found: dict[str, None] = {}
    for name in text.replace(";", ",").split(","):
        match = _ARCHITECTURE.fullmatch(name.strip())
        if match is None:
            raise InputError(f"--arch: {name.strip()!r} is no architecture, such as 80, 90a or 120")
        if int(match[1]) < OLDEST_ARCHITECTURE:
            raise InputError(
                f"--arch: the kernels need architecture {OLDEST_ARCHITECTURE} or newer, not"
                f" {match[1]}"
            )
        found[match[1] + match[2]] = None
    numbers = [int(name.rstrip("af")) for name in found]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise InputError(f"--arch: {twice[0]} is given in more than one form; choose one of them")
    return tuple(sorted(found, key=lambda name: (int(name.rstrip("af")), name)))


def find_nvcc(named: Path | None = None) -> Nvcc:
    """Return the compiler: ``named``, else ``CUDACXX``, on PATH, in ``CUDA_HOME`` or where it is
    usually installed.

    Raises:
        InputError: there is none, it cannot be run, or it is too old.
    """
    path = named or _first_found()
    if path is None:
        raise InputError(
            "no CUDA compiler: nvcc is not on PATH, CUDACXX and CUDA_HOME name none; install the"
            " CUDA toolkit, or give --nvcc"
        )
    said = _ask(path, "--version")
    match = re.search(r"release (\d+)\.(\d+)", said)
    if match is None:
        raise InputError(f"{path} does not say the version of CUDA it is of: is it nvcc?")
    version = int(match[1]), int(match[2])
    if version < OLDEST:
        raise InputError(
            f"{path} is of CUDA {match[1]}.{match[2]}; the kernels need {OLDEST[0]}.{OLDEST[1]} or"
            " newer"
        )
    return Nvcc(path, version)


def _first_found() -> Path | None:
    named = os.environ.get("CUDACXX")
    if named:
        return Path(named)
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [str(Path(home, "bin")) for home in (*homes, "/usr/local/cuda")]
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))
    return Path(found) if found else None


def _ask(path: Path, option: str) -> str:
    try:
        done = subprocess.run([str(path), option], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise InputError(f"`{path} {option}` failed with {done.returncode}: is it nvcc?")
    return done.stdout


def read_warnings(said: str) -> tuple[str, ...]:
    """Return what nvcc or ptxas warned of, and where ptxas says that speed is lost."""
    words = ("warning", "potential performance loss")
    return tuple(
        line.strip() for line in said.splitlines() if any(word in line.lower() for word in words)
    )


def read_resources(said: str) -> tuple[Resources, ...]:
    """Return what ``ptxas -v`` said of each kernel."""
    found: list[Resources] = []
    name = architecture = ""
    stack = spilled = 0
    for line in said.splitlines():
        if match := _ENTRY.search(line):
            name, architecture = match.groups()
        elif match := _FRAME.search(line):
            stack, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif (match := _USED.search(line)) and name:
            found.append(Resources(name, architecture, int(match[1]), stack, spilled))
            name = ""
    return tuple(found)
