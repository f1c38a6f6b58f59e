"""The JSON Schema of a bundle's manifest: ``python -m mla_opt.bundles.schema`` writes it."""

from __future__ import annotations

from pathlib import Path

from mla_opt.bundles.manifest import BUNDLE_SCHEMA_VERSION, BundleManifest
from mla_opt.report.schema import SchemaFile

BUNDLE = SchemaFile(
    Path(__file__).with_name("bundle.schema.json"), BundleManifest, BUNDLE_SCHEMA_VERSION
)

if __name__ == "__main__":
    BUNDLE.write()
