"""Which package may import which: the table is the architecture, and this holds it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import mla_opt

HOME = Path(mla_opt.__file__).parent

WORDS = {"aside", "background", "errors", "events", "handles", "geometry", "option_text", "version"}
GRAPHS = {"sites", "kernels", "operator", "graphs", *WORDS}
COMPILER = {"matching", "emission", "cost_model", "passes", "pipeline", "options", *GRAPHS}
PROOF = {"programs", "files", "report", "ort_values", "verification", *GRAPHS}
BELOW_API = {"subject", "metadata", "report.interface_changes", *PROOF, *COMPILER}
API = {"api", *BELOW_API}

#: What each package, or module beside the packages, may import of the others. A path of two words
#: is a module that stands on another floor than its package.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "handles": set(),
    "background": set(),
    "aside": {"handles"},
    "geometry": {"errors"},
    "events": {"errors"},
    "option_text": {"errors"},
    "models": {"errors"},
    "ort_values": {"errors"},
    "sites": WORDS,
    "kernels": WORDS,
    "operator": {"kernels", *WORDS},
    "cost_model": {"sites", *WORDS},
    "graphs": {"ort_values", "sites", "operator", *WORDS},
    "pipeline": {"graphs", "sites", *WORDS},
    "matching": {"graphs", "operator", "sites", *WORDS},
    "emission": {"graphs", "operator", "sites", *WORDS},
    "passes": {"matching", "emission", "cost_model", "pipeline", *GRAPHS},
    "options": {"passes", "pipeline", "sites", *WORDS},
    "report": {"sites", "cost_model", *WORDS},
    "report.interface_changes": {"operator", "report", *WORDS},
    "files": {"report", *WORDS},
    "programs": {"files", "report", *GRAPHS},
    "programs.backend": {"options", "programs", "programs.program_options", *GRAPHS},
    "programs.program_options": {"options", *WORDS},
    "verification": {"programs", "files", "ort_values", *GRAPHS},
    "metadata": {"report", "sites", "cost_model", "verification", *WORDS},
    "subject": {
        "metadata",
        "files",
        "programs",
        "programs.program_options",
        "options",
        "report",
        *GRAPHS,
    },
    "api": BELOW_API,
    "benchmarking": API,
    "engines": API,
    "folders": API,
    "bundles": {"engines", "folders", *API},
    "integrations": {"runtimes", *API},
    "doctor": {"engines", *API},
    "runtimes": {"bundles", "engines", *API},
    "cli": {
        "benchmarking",
        "bundles",
        "doctor",
        "engines",
        "folders",
        "runtimes",
        "models",
        *API,
    },
    "__main__": {"cli"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module as dotted name below the package."""
    # `passes` is a link in a checkout, which a recursive glob does not follow
    for path in sorted({*HOME.rglob("*.py"), *(HOME / "passes").glob("*.py")}):
        parts = path.relative_to(HOME).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def imported(path: Path) -> Iterator[str]:
    """Names below the package that a module imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(name: str) -> str:
    """The entry of the table that a module belongs to."""
    two = ".".join(name.split(".")[:2])
    return two if two in MAY_IMPORT else name.split(".")[0]


def strays(name: str, path: Path) -> list[str]:
    """What a module imports though its room may not."""
    below = [
        each.removeprefix("mla_opt.") for each in imported(path) if each.startswith("mla_opt.")
    ]
    here = room(name)
    return [
        each
        for each in below
        if room(each) != here and room(each) not in MAY_IMPORT.get(here, set())
    ]


def test_every_package_has_its_row() -> None:
    assert {room(name) for name, _ in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_it_may(name: str) -> None:
    found = {each: strays(each, path) for each, path in modules() if room(each) == name}
    assert not {each: bad for each, bad in found.items() if bad}


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not list is there in a checkout, and not in a wheel."""
    with (HOME.parent / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(HOME.parent) for path in HOME.rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= listed


def test_every_file_that_is_no_module_is_installed() -> None:
    """Schemas, sources of kernels, models, loaders: what the package reads is listed, too."""
    with (HOME.parent / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    made = {".so", ".dylib", ".sources", ".o", ".py", ".pyc"}
    left = [
        path.relative_to(HOME)
        for path in HOME.rglob("*")
        if path.is_file()
        and path.suffix not in made
        and not any(
            fnmatch(path.name, pattern)
            for pattern in listed.get(".".join(path.relative_to(HOME.parent).parent.parts), ())
        )
    ]
    assert not left


def test_the_table_has_no_circles() -> None:
    """Packages stand on floors: none may reach itself through others."""
    reached = {name: set(direct) for name, direct in MAY_IMPORT.items()}
    for _ in MAY_IMPORT:
        for below in reached.values():
            below |= {deeper for each in list(below) for deeper in reached[each]}
    assert not {name for name, below in reached.items() if name in below}


def test_a_stray_import_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "stray.py"
    path.write_text("def f():\n    from mla_opt.cli import main\n")
    assert strays("graphs.stray", path) == ["cli.main"]
