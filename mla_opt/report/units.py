"""Numbers as a person reads them: three digits, and a prefix."""

from __future__ import annotations

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def quantity(value: float, unit: str = "") -> str:
    """Write a number with three digits and a decimal prefix: ``2.30 MB``."""
    power = 0
    while abs(value) >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:.0f}" if power == 0 and value == int(value) else f"{value:.3g}"
    return f"{digits} {_UNITS[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits: ``12.3 us``, ``4.56 ms``, ``7.8 s``, ``1,234 s``."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= 0.9995 * scale:  # what is rounded to a thousand is one of the next
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def ratio(before: float, after: float) -> str:
    """Write how many times less or more it became, in brackets; nothing where it is the same."""
    if not before or not after or before == after:
        return ""
    factor = before / after
    return f" ({factor:.3g}x less)" if factor > 1 else f" ({1 / factor:.3g}x more)"


def change(before: float, after: float, unit: str = "") -> str:
    """Write what became of a number: ``40 kB -> 2.3 kB (17.8x less)``."""
    said, then = quantity(before, unit), quantity(after, unit)
    return said if said == then else f"{said} -> {then}{ratio(before, after)}"
