"""Names of test cases that are the same in every process, as pytest-xdist needs them."""

from __future__ import annotations

import re

_FUNCTION = re.compile(r"<function (?:\S+\.)?(\w+|<lambda>) at 0x[0-9a-f]+>")


def label(value: object) -> str:
    """The value as text, functions by their names."""
    return _FUNCTION.sub(r"\1", str(value))
