"""Configs in JSON: read without trusting them, and written back with a few values changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mla_opt.errors import InputError
from mla_opt.folders.result import ConfigChange
from mla_opt.folders.tree import Tree

MOST_BYTES = 64 << 20
"""Bytes of a config; those of exporters have some thousands."""

MOST_DEPTH = 64
"""Objects and lists inside each other."""


def read_config(tree: Tree, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder.

    Raises:
        InputError: it is too large, no JSON, or no object.
    """
    path = tree.path(name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than {MOST_BYTES >> 20} MiB; give the config")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is no JSON: {reason}; copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object; copy it again")
    if _is_deeper(content, MOST_DEPTH):
        raise InputError(f"{path}: has parts inside each other, more than {MOST_DEPTH} deep")
    return content


def _is_deeper(content: Any, limit: int) -> bool:
    """Whether a value has more levels than ``limit``."""
    level = [content]
    for _ in range(limit):
        level = [inner for each in level for inner in _inside(each)]
    return bool(level)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def number(config: Mapping[str, Any], key: str) -> int | None:
    """A size in a config; ``None`` where there is none."""
    value = config.get(key)
    known = isinstance(value, int) and not isinstance(value, bool)
    return value if known else None


def to_bytes(config: Mapping[str, Any]) -> bytes:
    """The text of a config, indented as transformers does it."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def differences(name: str, before: Any, after: Any) -> tuple[ConfigChange, ...]:
    """The values of a config that were changed or added."""
    return tuple(_differences(name, "", before, after))


def _differences(name: str, at: str, before: Any, after: Any) -> Iterator[ConfigChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in after.items():
            yield from _differences(name, f"{at}.{key}" if at else key, before.get(key), value)
    elif before != after:
        yield ConfigChange(name, at, before, after)
