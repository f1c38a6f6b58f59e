"""Every refusal says what would change it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mla_opt
from mla_opt.matching.not_latent import REMEDIES

HOME = Path(mla_opt.__file__).parent
SOURCES = sorted([*(HOME / "matching").glob("*.py"), *(HOME / "passes").glob("*.py")])


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """Calls of a class in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
            yield node


def has_remedy(call: ast.Call, place: int) -> bool:
    given = [*call.args[place:], *(each.value for each in call.keywords if each.arg == "remedy")]
    return any(not (isinstance(each, ast.Constant) and not each.value) for each in given)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_refusal_is_never_without_a_remedy(path: Path) -> None:
    for call in calls(path, "NotLatentError"):
        code = call.args[0]
        known = isinstance(code, ast.Constant) and REMEDIES.get(code.value)
        assert has_remedy(call, 3) or known, f"line {call.lineno}"
    for call in calls(path, "Refusal"):
        assert has_remedy(call, 4), f"line {call.lineno}"


def test_there_are_refusals_to_look_at() -> None:
    assert sum(len([*calls(path, "NotLatentError")]) for path in SOURCES) > 20
    assert sum(len([*calls(path, "Refusal")]) for path in SOURCES) > 5
