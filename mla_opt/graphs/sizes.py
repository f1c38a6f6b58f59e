"""Sizes as expressions: what is known of them at every batch, query length and past length.

A size is a number, or a SymPy expression of the model's own symbols. Two sizes are the same only if
their difference is zero identically: that they agree at some example proves nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import sympy

Expression = Any
"""An ``int`` or a ``sympy.Expr``."""

_LONGEST = 200
"""Characters of the longest expression that is read; no exporter writes longer ones."""


def symbol(name: str) -> Expression:
    """A size that may be any count, known by its name."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def plain(size: Expression) -> Expression:
    """The size as an ``int`` where it is a number."""
    if isinstance(size, sympy.Expr) and size.is_Integer:
        return int(size)
    return size


def same(left: Expression, right: Expression) -> bool:
    """Whether two sizes are equal whatever their symbols stand for."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return bool(_difference(left, right) == 0)


def difference(left: Expression, right: Expression) -> Expression:
    """``left - right``, simplified."""
    return plain(_difference(left, right))


@lru_cache(maxsize=1 << 16)
def _difference(left: Expression, right: Expression) -> Expression:
    if left == right:
        return 0
    return sympy.expand(left - right)


@lru_cache(maxsize=1 << 14)
def quotient(whole: Expression, part: Expression) -> Expression | None:
    """``whole / part`` where that is a size of its own at every size; else ``None``."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    if part == 1:
        return whole
    if part == 0:
        return None
    ratio = sympy.cancel(sympy.sympify(whole) / part)
    _, below = ratio.as_numer_denom()
    return plain(sympy.expand(ratio)) if below == 1 else None


def product(sizes: Iterable[Expression]) -> Expression:
    """All sizes multiplied."""
    total: Expression = 1
    for size in sizes:
        total = total * size
    return plain(sympy.expand(total)) if isinstance(total, sympy.Expr) else total


def broadcast(left: Expression, right: Expression) -> Expression:
    """The size of an axis that is broadcast.

    Two sizes that differ as expressions are equal in every call that does not fail, or one of them
    is 1 there. The one that is known better is returned; where the other is larger, what follows
    fails, in the model as in what is made of it, for want of rows.
    """
    if same(left, right) or right == 1:
        return left
    if left == 1:
        return right
    return min(left, right, key=_vagueness)


def is_open(size: Expression) -> bool:
    """Whether a size is, or is made of, one that is known to be equal to itself only."""
    if isinstance(size, int):
        return False
    return any(str(each).startswith("?") for each in size.free_symbols)


def _vagueness(size: Expression) -> int:
    """Numbers are known best, then sums and products of symbols, then symbols and what is cut."""
    if isinstance(size, int):
        return 0
    if is_open(size):
        return 4
    if isinstance(size, sympy.Min | sympy.Max):
        return 3
    return 2 if size.is_Symbol else 1


def smaller(left: Expression, right: Expression) -> Expression:
    """The smaller of two sizes."""
    return plain(sympy.Min(left, right))


def read(text: str) -> Expression:
    """A size as a file declares it: a number, a symbol, or sums and products of such.

    What is no such expression is a symbol of that name.
    """
    text = text.strip()
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if text.isidentifier() or len(text) > _LONGEST:
        return symbol(text)
    try:
        return plain(sympy.expand(_evaluated(ast.parse(text, mode="eval").body)))
    except (SyntaxError, ValueError, RecursionError):
        return symbol(text)


def _evaluated(node: ast.expr) -> Expression:
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 40:
        return sympy.Integer(node.value)
    if isinstance(node, ast.BinOp):
        left, right = _evaluated(node.left), _evaluated(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.FloorDiv():
                return sympy.floor(left / right)
    raise ValueError("not an expression of sizes")
