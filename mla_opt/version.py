"""The version, of which the package's metadata is the one source."""

from __future__ import annotations

from importlib import metadata


def tool_version() -> str:
    """Return the version of mla-opt, or ``unknown`` in a checkout that is not installed."""
    try:
        return metadata.version("mla-opt")
    except metadata.PackageNotFoundError:
        return "unknown"
