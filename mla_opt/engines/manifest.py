"""`manifest.json`, beside the engines: what they are, what they take, and how their caches lie.

The JSON is versioned like the reports, and described by ``engine.schema.json`` beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mla_opt.engines.layers import Became
from mla_opt.engines.precision import Precision
from mla_opt.engines.tensorrt_library import Runtime
from mla_opt.errors import InputError
from mla_opt.geometry import MlaGeometry
from mla_opt.options import Phase
from mla_opt.report.plain import from_plain, to_plain

MANIFEST = "manifest.json"
Lowered = Literal["prompt", "plugin", "operators"]
ENGINE_SCHEMA_VERSION = 2
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class File:
    """One file of the folder."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output of an engine.

    ``shape`` is as the ONNX file declares it, symbols for what is free. ``profile`` holds the
    least, the usual and the greatest shape of an input; it is empty for an output.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    profile: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Cache:
    """One buffer of latent rows, ``[B, 1, rows, width]``, new rows behind the valid ones.

    ``output`` must be bound to the address of ``input``: it is the same memory. Rows that are not
    valid must be finite, so a new buffer is filled with zeros.
    """

    input: str
    output: str
    dtype: str
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class Attention:
    """One latent attention, what became of it in this engine, and the kernels that do its work.

    ``lowered`` is what the ONNX file has for it: a whole ``prompt`` with expanded keys and values,
    or for a decode step the operator of the ``plugin`` or standard ``operators``. ``became`` is
    ``unknown`` where no engine was built, or TensorRT did not list its layers.
    """

    name: str
    lowered: Lowered
    became: Became
    kernels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PhaseEngine:
    """The engine of one phase. ``engine`` is ``None`` when only ONNX files were asked for.

    ``notes`` tell where it is not what was asked for, and why. ``cache_in_place`` says whether the
    layers that TensorRT listed write the caches in place; ``None`` where it listed none.
    """

    phase: Phase
    onnx: tuple[File, ...]
    engine: File | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attentions: tuple[Attention, ...]
    notes: tuple[str, ...] = ()
    cache_in_place: bool | None = None


@dataclass(frozen=True, slots=True)
class Plugin:
    """The plugin that the decode engine needs; there is none where no attention is run by it.

    ``library`` is ``None`` when the engine carries it; loading one that does needs permission to
    run host code.
    """

    namespace: str
    name: str
    version: str
    library: File | None


@dataclass(frozen=True, slots=True)
class Builder:
    """What built the engines, and for what.

    ``compute_capabilities`` are numbers such as 89; ``device`` names the GPU that was there, if
    they were built on one.
    """

    runtime: Runtime
    version: str
    compute_capabilities: tuple[int, ...]
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of one export.

    ``past_len`` is the input that counts the valid rows of each sequence before the call, 0 in
    the prefill engine, which takes whole prompts into empty buffers. ``geometries`` are those of
    the attentions, by name.
    """

    source_sha256: str | None
    precision: Precision
    rows: int
    past_len: str
    caches: tuple[Cache, ...]
    geometries: Mapping[str, MlaGeometry]
    phases: tuple[PhaseEngine, ...]
    plugin: Plugin | None
    builder: Builder | None
    verified: bool
    tool_version: str
    schema_version: int = ENGINE_SCHEMA_VERSION

    def phase(self, phase: Phase) -> PhaseEngine:
        """The engine of a phase. Raises `InputError` if there is none."""
        for each in self.phases:
            if each.phase == phase:
                return each
        raise InputError(f"{MANIFEST}: has no {phase} phase")

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is damaged, or of another version.
        """
        return parse_manifest(cls, text, ENGINE_SCHEMA_VERSION)


def parse_manifest(kind: type[Kind], text: str, version: int) -> Kind:
    """Read a manifest, of engines or of another kind, as its dataclass.

    Raises:
        InputError: it is damaged, or of another version.
    """
    content = read_fields(text)
    found = content.get("schema_version")
    if found != version:
        raise InputError(
            f"{MANIFEST}: has schema version {found}, this release reads {version}; export the"
            " model again"
        )
    try:
        return from_plain(kind, content)
    except ValueError as error:
        raise InputError(f"{MANIFEST}: {error}") from error


def read_fields(text: str) -> dict[str, object]:
    """The fields of any manifest. Raises `InputError` where it has none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{MANIFEST}: is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        InputError: the folder has none, or it is damaged.
    """
    text = manifest_text(folder)
    kind = read_fields(text).get("kind")
    if kind is not None:
        raise InputError(
            f"{folder}: holds a model for {kind}, and no engines; where an ONNX file will do, give"
            " the one in it"
        )
    return Manifest.from_json(text)


def manifest_text(folder: Path) -> str:
    """The text of the manifest in a folder. Raises `InputError` where there is none."""
    path = folder / MANIFEST
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give the folder that `mla-opt export` wrote"
        ) from error
