"""Exported files, and what they look like optimized."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports import cache, expanded_cache, exporters, kept
from tests.exports.spec import ExportSpec


def export_file(spec: ExportSpec) -> Path:
    """The file of a spec; skips where its exporter is not at hand."""
    if kept.there(spec.id):
        return cache.exported(spec)
    if not spec.expanded:
        # In this process: importing transformers takes as long as many an export.
        return cache.built_once(cache.path_of(spec), lambda path: exporters.export(spec, path))
    try:
        expanded_cache.interpreter()
    except LookupError as error:
        pytest.skip(str(error))
    return cache.exported(spec)


@pytest.fixture(scope="session")
def plain() -> Path:
    """The most ordinary export there is: DeepSeek-V3 with its cache, opset 18."""
    return export_file(ExportSpec("deepseek_v3"))
