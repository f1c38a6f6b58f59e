"""Reading JSON that came with a model: nothing in it is taken on trust.

Every function raises `InputError` naming the metadata key and the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mla_opt.errors import InputError

MAX_CHARACTERS = 1 << 24
MAX_COUNT = 1 << 31


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stands, for messages."""

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Fields:
        """Take ``value`` for an object."""
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a JSON object, not {_kind(value)}")
        return cls(value, where)

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        value = self._get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a non-empty string", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string, or ``None`` where the field is null or missing."""
        return None if self.values.get(key) is None else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of different, non-empty strings."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self._wrong(key, "a list of non-empty strings", value)
        if len(set(value)) != len(value):
            raise self._wrong(key, "a list without repetition", value)
        return tuple(value)

    def count(self, key: str, least: int = 0) -> int:
        """Return an integer of at least ``least``."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MAX_COUNT:
            raise self._wrong(key, f"an integer of at least {least}", value)
        return value

    def optional_count(self, key: str, least: int = 0) -> int | None:
        """Return an integer, or ``None`` where the field is null or missing."""
        return None if self.values.get(key) is None else self.count(key, least)

    def flag(self, key: str) -> bool:
        """Return a truth value; false where it is absent."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def number(self, key: str) -> float:
        """Return a number; of its size, that it is finite and of an order that factors have."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if not -MAX_COUNT < value < MAX_COUNT:
            raise self._wrong(key, f"a number between -{MAX_COUNT} and {MAX_COUNT}", value)
        return float(value)

    def objects(self, key: str) -> tuple[Fields, ...]:
        """Return a list of objects."""
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return objects(value, f"{self.where}.{key}")

    def optional_objects(self, key: str) -> tuple[Fields, ...]:
        """Return a list of objects; none where the field is missing."""
        return self.objects(key) if key in self.values else ()

    def sizes(self, key: str) -> tuple[int | str | None, ...]:
        """Return a shape: numbers, symbols and null."""
        value = self._get(key)
        if not isinstance(value, list) or not all(_is_size(each) for each in value):
            raise self._wrong(key, "a list of sizes", value)
        return tuple(value)

    def inner(self, key: str) -> Fields:
        """Return one object."""
        return Fields.of(self._get(key), f"{self.where}.{key}")

    def _get(self, key: str) -> object:
        if key not in self.values:
            raise InputError(f"{self.where} has no field {key!r}")
        return self.values[key]

    def _wrong(self, key: str, wanted: str, value: object) -> InputError:
        return InputError(f"{self.where}.{key} must be {wanted}, not {_shown(value)}")


def _is_size(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < MAX_COUNT
    return value is None or isinstance(value, str)


def objects(values: list[object], where: str) -> tuple[Fields, ...]:
    """Take every item of ``values`` for an object."""
    return tuple(Fields.of(value, f"{where}[{i}]") for i, value in enumerate(values))


def parse(text: str, where: str) -> object:
    """Parse ``text``."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where} is {len(text)} characters long; {MAX_CHARACTERS} is the limit")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
