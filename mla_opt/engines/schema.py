"""The JSON Schema of an engine's manifest: ``python -m mla_opt.engines.schema`` writes it."""

from __future__ import annotations

from pathlib import Path

from mla_opt.engines.manifest import ENGINE_SCHEMA_VERSION, Manifest
from mla_opt.report.schema import SchemaFile

ENGINE = SchemaFile(Path(__file__).with_name("engine.schema.json"), Manifest, ENGINE_SCHEMA_VERSION)

if __name__ == "__main__":
    ENGINE.write()
