"""`manifest.json` of a bundle: its files, what the model takes, and how its caches lie.

The JSON is of the kind that engines have, and described by ``bundle.schema.json`` beside this file.
The loaders in a bundle read it, or were written from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mla_opt.engines.manifest import (
    MANIFEST,
    File,
    Tensor,
    manifest_text,
    parse_manifest,
    read_fields,
)
from mla_opt.errors import InputError
from mla_opt.report.plain import to_plain

Kind = Literal["onnxruntime"]
Role = Literal["tokens", "positions", "start", "mask"]
Counted = Literal["query_len", "total_len"]
BUNDLE_SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Fed:
    """An input that every call is fed, and with what, for one sequence.

    ``shape`` has numbers, ``query_len`` for S new tokens, and ``total_len`` for these and all
    before. ``role`` says what goes in: the ``tokens``, their ``positions``, the number of tokens
    before the call (``start``), or a ``mask``: ``visible`` at the places that a new token may look
    at, ``hidden`` at those behind it. A mask without ``query_len`` is that of the last new token.
    """

    name: str
    dtype: str
    role: Role
    shape: tuple[int | Counted, ...]
    visible: float = 1.0
    hidden: float = 0.0


@dataclass(frozen=True, slots=True)
class Cache:
    """One buffer of latent rows, ``[1, 1, rows, width]``, new rows behind the valid ones.

    ``output`` must be bound to the address of ``input``: it is the same memory. Rows that are not
    valid must be finite, so a new buffer is all zeros, ``bytes`` of them. ``onnx_type`` is the
    number that ONNX has for ``dtype``.
    """

    input: str
    output: str
    dtype: str
    onnx_type: int
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One latent attention: H, C and R."""

    name: str
    num_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int


@dataclass(frozen=True, slots=True)
class Library:
    """The kernels of the model's operators, and where they run, in the words of Python's
    ``platform.system()`` and ``platform.machine()``."""

    file: File
    system: str
    machine: str


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """All of one bundle.

    ``model`` is the ONNX file, then the files that hold its weights; ``others`` are the loaders and
    what is to be read. ``source_sha256`` is of the model that this one was made of; it was
    ``verified`` against that one, or taken as it was and not. Prompts go in by at most ``most_new``
    tokens a call. ``library`` is ``None`` where the model has standard operators only.
    """

    kind: Kind
    source_sha256: str
    rows: int
    most_new: int
    vocabulary: int | None
    inputs: tuple[Fed, ...]
    logits: Tensor
    caches: tuple[Cache, ...]
    layers: tuple[Layer, ...]
    model: tuple[File, ...]
    library: Library | None
    others: tuple[File, ...]
    onnxruntime_version: str
    verified: bool
    tool_version: str
    schema_version: int = BUNDLE_SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BundleManifest:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is damaged, of another version, or names a file elsewhere.
        """
        manifest = parse_manifest(cls, text, BUNDLE_SCHEMA_VERSION)
        library = () if manifest.library is None else (manifest.library.file,)
        _check_names((*manifest.model, *library, *manifest.others))
        if not manifest.model:
            raise InputError(f"{MANIFEST}: names no model")
        return manifest


def _check_names(files: Iterable[File]) -> None:
    """The files of a bundle lie in its folder."""
    for each in files:
        if each.name in ("", ".", "..") or any(letter in each.name for letter in "/\\\0"):
            raise InputError(f"{MANIFEST}: {each.name!r} is no name of a file in the folder")


def kind_of(folder: Path) -> Literal["onnxruntime", "tensorrt"]:
    """What a folder that `mla-opt export` wrote is for; the manifests of engines have no kind.

    Raises:
        InputError: there is no manifest, or it is of no kind that is known.
    """
    kind = read_fields(manifest_text(folder)).get("kind", "tensorrt")
    if kind not in ("onnxruntime", "tensorrt"):
        raise InputError(f"{folder / MANIFEST}: is for {kind!r}, which this release does not know")
    return "onnxruntime" if kind == "onnxruntime" else "tensorrt"


def read_bundle(folder: Path) -> BundleManifest:
    """Read the manifest of a bundle.

    Raises:
        InputError: the folder has none, or it is damaged.
    """
    if kind_of(folder) != "onnxruntime":
        raise InputError(f"{folder}: holds engines, and no bundle for ONNX Runtime")
    return BundleManifest.from_json(manifest_text(folder))
