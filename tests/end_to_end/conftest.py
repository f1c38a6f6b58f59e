"""Exported files, and what they look like optimized."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports import cache, expanded_cache, kept
from tests.exports.spec import ExportSpec


def export_file(spec: ExportSpec) -> Path:
    """The file of a spec; skips where its exporter is not at hand."""
    if spec.expanded and not kept.there(spec.id):
        try:
            expanded_cache.interpreter()
        except LookupError as error:
            pytest.skip(str(error))
    return cache.exported_here(spec)


@pytest.fixture(scope="session")
def plain() -> Path:
    """The most ordinary export there is: DeepSeek-V3 with its cache, opset 18."""
    return export_file(ExportSpec("deepseek_v3"))
