"""The JSON Schema (2020-12) of the reports, derived from the dataclasses.

The schemas lie beside this file, ``report.schema.json``, ``inspection.schema.json``,
``bench.schema.json`` and ``engine.schema.json``, for readers without Python; a test fails when they
differ from what this module makes. ``python -m mla_opt.report.schema`` writes them again.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from mla_opt.benchmarking.report import BENCH_SCHEMA_VERSION, BenchReport
from mla_opt.engines.manifest import ENGINE_SCHEMA_VERSION, Manifest
from mla_opt.report.inspection import INSPECTION_SCHEMA_VERSION, InspectionReport
from mla_opt.report.plain import hints
from mla_opt.report.report import REPORT_SCHEMA_VERSION, OptimizationReport

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

FILES: dict[str, tuple[type, int]] = {
    "report.schema.json": (OptimizationReport, REPORT_SCHEMA_VERSION),
    "inspection.schema.json": (InspectionReport, INSPECTION_SCHEMA_VERSION),
    "bench.schema.json": (BenchReport, BENCH_SCHEMA_VERSION),
    "engine.schema.json": (Manifest, ENGINE_SCHEMA_VERSION),
}


def schema_of(kind: type, version: int) -> dict[str, Any]:
    """Return the schema of dataclass ``kind``; ``schema_version`` is pinned to ``version``."""
    definitions: dict[str, Any] = {}
    root = _object(kind, definitions)
    root["properties"]["schema_version"] = {"const": version}
    return {
        "$schema": _DIALECT,
        "$id": f"urn:mla-opt:{kind.__name__}:{version}",
        "title": kind.__name__,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def text_of(name: str) -> str:
    """Return the schema file ``name`` as it should lie beside this module."""
    kind, version = FILES[name]
    return json.dumps(schema_of(kind, version), indent=2, ensure_ascii=False) + "\n"


def load(name: str) -> Any:
    """Return the schema file ``name`` as it lies beside this module."""
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _schema(of, definitions) for name, of in hints(kind).items()}
    return {
        "description": inspect.getdoc(kind) or "",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in (object, Any):
        return {}
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if is_dataclass(kind) and isinstance(kind, type):
        return _reference(kind, definitions)
    return _composite(kind, definitions)


def _reference(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _composite(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    raise TypeError(f"no JSON Schema for {kind!r}")


def main() -> None:
    """Write the schema files beside this module."""
    for name in FILES:
        Path(__file__).with_name(name).write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
