"""Compiles the kernel library with whatever C++ compiler is there.

    python -m mla_opt.kernels [--force]

Runs when mla-opt is installed, before anything it depends on is: the standard library is all that
it may import. ``CXX`` names another compiler, ``CXXFLAGS`` adds to its options. No option names an
instruction set: sources that need one say so themselves, and are only run where it is there.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
FOLDERS = ("cpu", "onnxruntime")
NAME = "libmla_opt_kernels.dylib" if sys.platform == "darwin" else "libmla_opt_kernels.so"
LIBRARY = HOME / NAME
# Beside a library: what it was made of, so that nobody tests or times an old one.
STAMP_SUFFIX = ".sources"
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-pthread")


class BuildError(Exception):
    """There is no library, and the message says why."""


def compiler() -> list[str]:
    """Return the command of the compiler.

    Raises:
        BuildError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named
    if sys.platform == "win32":
        raise BuildError("the kernels have not been made to compile on Windows")
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH")


def sources() -> list[Path]:
    """Return every file that is compiled."""
    return [path for folder in FOLDERS for path in sorted((HOME / folder).glob("*.cpp"))]


def fingerprint() -> str:
    """Return a hash of all sources and options."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for folder in FOLDERS:
        for path in sorted((HOME / folder).iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_current(library: Path = LIBRARY) -> bool:
    """Whether ``library`` was made of the sources as they are."""
    stamp = library.with_name(library.name + STAMP_SUFFIX)
    return library.exists() and stamp.exists() and stamp.read_text() == fingerprint()


def build(library: Path = LIBRARY) -> Path:
    """Compile all sources into ``library``, which appears whole or not at all.

    Raises:
        BuildError: there is no compiler, or it fails; the message ends with what it said.
    """
    command = compiler()
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".kernels-") as folder:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda path: _compile(command, path, folder), sources()))
        linked = Path(folder, library.name)
        _run([*command, "-shared", "-pthread", "-o", str(linked), *objects])
        linked.replace(library)
    library.with_name(library.name + STAMP_SUFFIX).write_text(fingerprint())
    return library


def _compile(command: Sequence[str], source: Path, folder: str) -> str:
    result = str(Path(folder, f"{source.parent.name}-{source.stem}.o"))
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    _run([*command, *OPTIONS, *extra, "-c", str(source), "-o", result])
    return result


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise BuildError(f"`{shlex.join(command)}` failed with {done.returncode}: {said}")
