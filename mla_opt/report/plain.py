"""Frozen dataclasses to plain JSON values and back, driven by their type hints.

Supported field types: ``str``, ``int``, ``float``, ``bool``, ``Literal``, ``X | None``,
``tuple[X, ...]``, ``Mapping[str, X]``, ``object`` (any JSON value) and other dataclasses.
JSON has no infinities and no NaN: such a number becomes ``null``, so its field must allow ``None``.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """Turn dataclasses, tuples and mappings into dicts, lists and scalars that JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(kind: type[T], data: Any) -> T:
    """Rebuild a value of ``kind`` from what :func:`to_plain` made of it.

    Raises:
        ValueError: a field is missing, unknown, or not of its type; the message has the path.
    """
    result: T = _build(kind, data, kind.__name__)
    return result


def hints(kind: type) -> dict[str, Any]:
    """Return the resolved type of every dataclass field of ``kind``, in order."""
    resolved = typing.get_type_hints(kind)
    return {field.name: resolved[field.name] for field in fields(kind)}


def _build(kind: Any, data: Any, path: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, data, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(arguments, data, path)
    if origin is tuple:
        items = _expect(list, data, path)
        return tuple(_build(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        items = _expect(dict, data, path)
        return {key: _build(arguments[1], item, f"{path}.{key}") for key, item in items.items()}
    if origin is typing.Literal:
        return _one_of(arguments, data, path)
    return _build_scalar(kind, data, path)


def _build_dataclass(kind: type, data: Any, path: str) -> Any:
    values = _expect(dict, data, path)
    types_of = hints(kind)
    if values.keys() != types_of.keys():
        odd = ", ".join(sorted(values.keys() ^ types_of.keys()))
        raise ValueError(f"{path}: missing or unknown fields: {odd}")
    return kind(
        **{name: _build(of, values[name], f"{path}.{name}") for name, of in types_of.items()}
    )


def _build_union(arguments: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds:
        try:
            return _build(kind, data, path)
        except ValueError:
            if kind is kinds[-1]:
                raise
    raise ValueError(f"{path}: {data!r} fits none of {arguments}")


def _build_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind in (object, Any):
        return data
    if kind is float:
        return float(_expect((int, float), data, path))
    return _expect(kind, data, path)


def _expect(kind: Any, data: Any, path: str) -> Any:
    # bool is an int in Python but not in JSON.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{path}: {data!r} is not of the right type")
    return data


def _one_of(choices: tuple[Any, ...], data: Any, path: str) -> Any:
    if data not in choices:
        raise ValueError(f"{path}: {data!r} is none of {', '.join(map(repr, choices))}")
    return data
