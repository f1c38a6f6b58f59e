"""What a file of `torch.export.save` says of itself, read as the zip archive that it is.

PyTorch does not say why a file cannot be loaded: its message points to warnings, and those to a
stack of others. What it stumbled over is in the archive: which release wrote it, and which
operators it calls.
"""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_opt.errors import InputError

_MODEL = "models/model.json"
_EXTRA = "extra/"
_COMPILED = "data/aotinductor/"
_OPERATOR = "torch.ops."

_ROOM = 64 << 20
"""Bytes by which the entries of an archive may be more than the archive: PyTorch packs nothing."""

#: What a damaged archive raises: a password, and JSON without an end, are kinds of `RuntimeError`.
_DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True, slots=True)
class Archive:
    """The description of the program in a file.

    Attributes:
        torch_version: the release of PyTorch that wrote it; empty where the file does not say.
        operators: the operators that the program calls, such as ``aten.silu.default``.
        extra_files: texts that were saved beside it, by name.
    """

    torch_version: str
    operators: tuple[str, ...]
    extra_files: Mapping[str, str]


def read_archive(path: Path) -> Archive:
    """Look into a file.

    Raises:
        InputError: it is no archive of a program, or one that holds far more than it is large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_room(path, archive)
            described = json.loads(archive.read(_entry(path, archive.namelist())))
            extra = {
                name.partition(_EXTRA)[2]: archive.read(name).decode()
                for name in archive.namelist()
                if name.partition("/")[2].startswith(_EXTRA)
            }
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DAMAGES as error:
        raise InputError(
            f"{path}: is truncated, damaged, or no program of torch.export; save or copy it again"
        ) from error
    if not isinstance(described, dict):
        raise InputError(f"{path}: is damaged: its {_MODEL} describes no program; save it again")
    names = dict.fromkeys(_operators(described.get("graph_module")))
    return Archive(str(described.get("torch_version", "")), tuple(names), extra)


def _check_room(path: Path, archive: zipfile.ZipFile) -> None:
    """Check, before any of it is unpacked, that the entries need no more than the file suggests."""
    unpacked, size = sum(each.file_size for each in archive.infolist()), path.stat().st_size
    if unpacked > size + _ROOM:
        raise InputError(
            f"{path}: would unpack to more than it holds ({unpacked} bytes of {size});"
            " torch.export.save packs nothing: save the program again"
        )


def _entry(path: Path, names: list[str]) -> str:
    """The entry that describes the program; the archive has one folder, of any name."""
    inner = {name.partition("/")[2]: name for name in names}
    if _MODEL in inner:
        return inner[_MODEL]
    others = [name for name in inner if name.startswith("models/") and name.endswith(".json")]
    if others:
        called = ", ".join(sorted(Path(name).stem for name in others))
        raise InputError(f"{path}: holds programs called {called}; save one with torch.export.save")
    what = "a zip archive, such as a PyTorch checkpoint"
    if any(name.startswith(_COMPILED) for name in inner):
        what = "a model that AOTInductor has compiled"
    raise InputError(
        f"{path}: is not a program of torch.export but {what}; export the model with"
        " torch.export.export and torch.export.save"
    )


def _operators(described: Any) -> Iterator[str]:
    """The targets of all nodes, those of the graphs in graphs included."""
    pending = [described]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            target = each.get("target")
            if isinstance(target, str) and target.startswith(_OPERATOR) and "inputs" in each:
                yield target.removeprefix(_OPERATOR)
            pending.extend(each.values())
        elif isinstance(each, list):
            pending.extend(each)
