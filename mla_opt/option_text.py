"""What users write for numbers of tokens and for caches: one reading of each, for everything."""

from __future__ import annotations

from mla_opt.errors import InputError

_SUFFIXES = {"k": 1 << 10, "m": 1 << 20}
#: Digits of the longest number that is read; nobody means more tokens than that.
_MOST_DIGITS = 9
_CACHES = ("keep", "packed", "even", "static")


def parse_count(text: str, least: int = 1) -> int:
    """Read a whole number; ``k`` stands for 1024, ``m`` for 1024 k.

    Raises:
        InputError: it is no such number, or smaller than ``least``.
    """
    digits, factor = text.strip().lower(), 1
    if digits[-1:] in _SUFFIXES:
        digits, factor = digits[:-1], _SUFFIXES[digits[-1]]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise InputError(f"{text!r} is no whole number; write 512 or 8k")
    if int(digits) * factor < least:
        raise InputError(f"{text!r} is too small: it must be at least {least}")
    return int(digits) * factor


def parse_cache(text: str) -> tuple[str, int | None]:
    """Read ``keep``, ``packed``, ``even``, ``static`` or ``static:ROWS``.

    Returns the mode, and the rows where they are given.

    Raises:
        InputError: it is something else.
    """
    mode, colon, rows = text.partition(":")
    if mode not in _CACHES or (colon and mode != "static"):
        raise InputError(f"{text!r} is none of keep, packed, static, static:ROWS and even")
    if not colon:
        return mode, None
    try:
        return mode, parse_count(rows)
    except InputError as error:
        raise InputError(f"the rows in {text!r}: {error}") from error
