"""What an operand must be, said where it is not: checks that every call of an operator makes.

Sizes may be symbolic. What must be equal is then demanded of the symbols, at run time where nothing
is known of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE


def check_rank(name: str, value: Tensor, rank: int) -> None:
    """Refuse another rank."""
    if value.ndim != rank:
        refuse(f"{name} has rank {value.ndim}, expected {rank}")


def check_size(name: str, what: str, size: int, expected: int) -> None:
    """Refuse another size of ``what``."""
    demand(size == expected, lambda: f"{name} has {what} {size}, expected {expected}")


def check_type(name: str, value: Tensor | None, allowed: tuple[torch.dtype, ...]) -> None:
    """Refuse another element type."""
    if value is not None and value.dtype not in allowed:
        refuse(f"{name} is {name_of(value.dtype)}, expected {either(allowed)}")


def demand(condition: Any, message: Callable[[], str]) -> None:
    """Refuse where ``condition`` is false; a symbolic one that is not known is checked later."""
    if condition is not True:
        torch._check_with(InputError, condition, lambda: f"{OP_TYPE}: {message()}")


def refuse(message: str) -> NoReturn:
    """Raise; whoever calls under another operator's name puts that in the place of this one."""
    raise InputError(f"{OP_TYPE}: {message}")


def name_of(dtype: torch.dtype) -> str:
    """Its name without the package's."""
    return str(dtype).removeprefix("torch.")


def either(types: tuple[torch.dtype, ...]) -> str:
    """Names of types, joined by ``or``."""
    *others, last = map(name_of, types)
    return f"{', '.join(others)} or {last}" if others else last
