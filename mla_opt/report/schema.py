"""The JSON Schema (2020-12) of what is written as JSON, derived from the dataclasses.

Each schema lies beside the code that owns it, for readers without Python; a test fails when one
differs from what this module makes. `python -m mla_opt.report.schema` writes those of this package
again, as `mla_opt.benchmarking.schema` and `mla_opt.engines.schema` do theirs.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from mla_opt.report.inspection import INSPECTION_SCHEMA_VERSION, InspectionReport
from mla_opt.report.plain import hints
from mla_opt.report.report import REPORT_SCHEMA_VERSION, OptimizationReport

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class SchemaFile:
    """The schema of dataclass ``kind``, and the file that holds it."""

    path: Path
    kind: type
    version: int

    def text(self) -> str:
        """Return what the file should hold."""
        schema = schema_of(self.kind, self.version)
        return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"

    def load(self) -> Any:
        """Return the schema as the file holds it."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write(self) -> None:
        """Write the file again."""
        self.path.write_text(self.text(), encoding="utf-8")


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


_HERE = Path(__file__).parent
REPORT = SchemaFile(_HERE / "report.schema.json", OptimizationReport, REPORT_SCHEMA_VERSION)
INSPECTION = SchemaFile(
    _HERE / "inspection.schema.json", InspectionReport, INSPECTION_SCHEMA_VERSION
)

if __name__ == "__main__":
    REPORT.write()
    INSPECTION.write()
