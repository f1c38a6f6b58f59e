"""`exported(spec)`: the file of a spec, built once and kept."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.exports import kept
from tests.exports.spec import ExportSpec

ROOT = Path(__file__).resolve().parents[2]
#: Sources that decide what a file holds.
SOURCES = ("spec", "weights", "patches", "families", "flat", "feeds", "exporters")
LIBRARIES = ("torch", "transformers", "onnx", "onnxscript")
TIMEOUT = 900.0
#: Before the one line on which a subprocess reports why it failed.
MARK = "EXPORT FAILED "


class ExportError(RuntimeError):
    """An exporter refused or died; the message is its own last words."""


def cache_folder() -> Path:
    """Where files are kept: `MLA_OPT_EXPORT_CACHE`, or `.export_cache` beside the sources."""
    return Path(os.environ.get("MLA_OPT_EXPORT_CACHE") or ROOT / ".export_cache")


@functools.cache
def fingerprint(*sources: str) -> str:
    """Ten digits that change when these modules of the harness do, or a library."""
    digest = hashlib.sha256()
    for name in sources:
        digest.update(_code(Path(__file__).with_name(f"{name}.py")))
    for library in LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    digest.update(Path(__file__).with_name("requirements-transformers-4.57.txt").read_bytes())
    return digest.hexdigest()[:10]


def _code(path: Path) -> bytes:
    """The program in a file, without its comments, docstrings and layout."""
    tree = ast.parse(path.read_text() if path.exists() else "")
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_text(statement)]
    return ast.dump(tree).encode()


def _is_text(statement: ast.AST) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant)


def path_of(spec: ExportSpec) -> Path:
    """The file of a spec, whether it exists yet or not."""
    sources = (*SOURCES, "expanded_cache") if spec.expanded else SOURCES
    return cache_folder() / f"{spec.id}-{fingerprint(*sources)}.onnx"


def exported(spec: ExportSpec) -> Path:
    """What is kept of it, or the exported file, built in a process of its own if it is not there.

    Raises:
        ExportError: with what the exporter said. Failures are not kept: the next call tries again.
    """
    if kept.there(spec.id):
        return kept_export(spec.id)
    return built_once(path_of(spec), lambda path: _export_in_subprocess(spec, path))


def exported_here(spec: ExportSpec) -> Path:
    """The same, built in this process if it has the libraries: importing them takes its time.

    Raises:
        ExportError: with what the exporter said.
    """
    if spec.expanded or kept.there(spec.id):
        return exported(spec)
    from tests.exports.exporters import export

    try:
        return built_once(path_of(spec), lambda path: export(spec, path))
    except Exception as error:
        raise ExportError(report_failure(error)) from error


def kept_export(name: str) -> Path:
    """An export of `kept`, unpacked."""
    path = cache_folder() / f"{name}-kept-{kept.digest(name)}.onnx"
    return built_once(path, lambda partial: kept.unpack(name, partial))


def built_once(path: Path, build: Callable[[Path], None]) -> Path:
    """`build` the file unless it is there; safe under concurrent test processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent / "locks" / path.stem):
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}{path.suffix}")
            try:
                build(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _export_in_subprocess(spec: ExportSpec, path: Path) -> None:
    """Run `python -m tests.exports.cache`, or the 4.57 exporter in its own interpreter."""
    python, module = sys.executable, "tests.exports.cache"
    if spec.expanded:
        from tests.exports.expanded_cache import interpreter

        python, module = interpreter(), "tests.exports.expanded_cache"
    run_module(python, module, "export", spec.to_json(), str(path))
    if not path.exists():
        raise ExportError("the exporter ended well and left no file")


def run_module(python: str, module: str, *arguments: str) -> None:
    """`python -m module arguments` from the root.

    Raises:
        ExportError: with the line its stderr gives as the reason.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            timeout=TIMEOUT,
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"no result within {TIMEOUT:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise ExportError(last_words(error)) from None


def last_words(error: subprocess.CalledProcessError) -> str:
    """The exception a subprocess died of, on one line."""
    lines = [line for line in error.stderr.splitlines() if line.startswith(MARK)]
    return lines[-1].removeprefix(MARK) if lines else f"exit status {error.returncode}"


def report_failure(error: BaseException) -> str:
    """The innermost cause on one line: exporters wrap it several times in pages of text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def failing_on_one_line(action: Callable[[], None]) -> int:
    """The exit status of a subprocess that reports its failure where `last_words` finds it."""
    try:
        action()
    except Exception as error:  # the boundary of the process: each is its result
        print(f"{MARK}{report_failure(error)}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """`export SPEC PATH`: the spec as JSON."""
    from tests.exports.exporters import export

    spec, path = ExportSpec.from_json(arguments[1]), Path(arguments[2])
    return failing_on_one_line(lambda: export(spec, path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
