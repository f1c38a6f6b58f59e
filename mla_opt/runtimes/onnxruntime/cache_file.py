"""Latent caches in files: an ``.npz`` of plain arrays with a JSON header.

Every member is stored as it lies in memory, rows that are in use only; bfloat16 and floats
of 8 bits by their bits.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.files.writing import whole_file
from mla_opt.graphs.interface.feeds import Bools, numpy_dtype
from mla_opt.graphs.interface.interface import State
from mla_opt.ort_values import BY_BITS
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.runtimes.onnxruntime.fingerprint import Fingerprint

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

FORMAT, VERSION = "mla_opt.latent_cache", 1
HEADER, VALID, PENDING = "header", "valid", "pending"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        states: rows in use of each state, ``[B, .., P, X]``, by the name of its input.
        valid: ``[B, P]``, false for padding.
        pending: tokens of each sequence that were not run yet.
    """

    states: dict[str, Array]
    valid: Bools
    pending: tuple[Ints, ...]


def write_cache(
    path: str | PathLike[str], content: Content, fingerprint: Fingerprint, force: bool
) -> None:
    """Write a file whole or not at all. Raises `InputError` where it may or can not be written."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "states": list(content.states),
        "layout": fingerprint.states,
        "weights": fingerprint.weights,
    }
    members: dict[str, Array] = {HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    members[VALID] = content.valid
    for index, tokens in enumerate(content.pending):
        members[f"{PENDING}.{index}"] = tokens
    for index, rows in enumerate(content.states.values()):
        by_bits = rows.dtype in BY_BITS
        members[f"state.{index}"] = rows.view(f"u{rows.dtype.itemsize}") if by_bits else rows
    if os.path.lexists(path) and not force:
        raise InputError(f"{path}: exists already; give force=True to replace it")
    with whole_file(Path(path), force=force) as stream:
        np.savez(stream, **members)  # type: ignore[arg-type]


def read_cache(path: str | PathLike[str], decoder: Decoder) -> Content:
    """Read a file that ``decoder`` wrote.

    Raises:
        InputError: it is no such file, is damaged, or is of another model.
    """
    members = _members(Path(path))
    try:
        header = json.loads(members[HEADER].tobytes())
        _check_header(path, header, decoder)
        return _content(path, members, decoder)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: is a damaged cache: {_one_line(error)}") from error


def _members(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _one_line(error)}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path}: is no saved cache: {_one_line(error)}") from error


def _check_header(path: str | PathLike[str], header: dict[str, Any], decoder: Decoder) -> None:
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: is no saved cache")
    if header.get("version") != VERSION:
        raise InputError(
            f"{path}: has version {header.get('version')}; this release reads {VERSION}"
        )
    own = decoder.description.fingerprint
    if header["layout"] != own.states:
        raise InputError(
            f"{path}: its caches ({', '.join(header['states'])}) are not of the names, types and"
            f" sizes that {decoder.label} has"
        )
    if own.weights and header["weights"] and header["weights"] != own.weights:
        raise InputError(f"{path}: was saved from a model of other weights than {decoder.label}")


def _content(path: str | PathLike[str], members: dict[str, Array], decoder: Decoder) -> Content:
    valid = members[VALID]
    if valid.ndim != 2 or valid.dtype != np.bool_ or not valid.shape[0]:
        raise ValueError("its lengths are missing")
    states = {
        state.input.name: _state(members[f"state.{index}"], state, valid.shape)
        for index, state in enumerate(decoder.interface.states)
    }
    pending = tuple(members[f"{PENDING}.{i}"].astype(np.int64) for i in range(len(valid)))
    if any(tokens.ndim != 1 for tokens in pending):
        raise ValueError("its pending tokens are no lists")
    return Content(states, valid, pending)


def _state(rows: Array, state: State, size: tuple[int, ...]) -> Array:
    dtype = numpy_dtype(state.input)
    if dtype in BY_BITS and rows.dtype.itemsize == dtype.itemsize:
        rows = rows.view(dtype)
    axis = state.growth_axis
    lengths = rows.shape[:1] if axis is None else (rows.shape[0], rows.shape[axis])
    if rows.dtype != dtype or lengths != size[: len(lengths)]:
        raise ValueError(f"{state.input.name} is {rows.dtype} of shape {rows.shape}")
    return rows


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
