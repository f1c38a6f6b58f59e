"""Token ids as callers give them, and as one rectangle that is padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import Bools

Ints = npt.NDArray[np.int64]
#: One sequence, or several.
Tokens = Sequence[int] | Sequence[Sequence[int]] | Sequence[Ints] | npt.NDArray[Any]

#: What padding is fed as. Nothing attends to it; every table has a row of that number.
PADDING = 0


def as_rows(tokens: Tokens, vocabulary: int | None) -> tuple[Ints, ...]:
    """Return one array of ids for each sequence.

    Raises:
        InputError: there is none, one is no list of whole numbers, or an id is out of range.
    """
    if not len(tokens):
        raise InputError("there are no tokens; give at least one sequence")
    single = np.ndim(tokens[0]) == 0
    rows = tuple(_row(row, i) for i, row in enumerate([tokens] if single else tokens))
    for index, row in enumerate(rows):
        _check_range(row, index, vocabulary)
    return rows


def _row(row: Any, index: int) -> Ints:
    array = np.asarray(row)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"sequence {index} must be a flat list of token ids, not {array.dtype} of shape"
            f" {array.shape}"
        )
    return array.astype(np.int64)


def _check_range(row: Ints, index: int, vocabulary: int | None) -> None:
    wrong = row[(row < 0) | (row >= (vocabulary or np.iinfo(np.int64).max))]
    if wrong.size:
        limit = "" if vocabulary is None else f"; the model knows 0 to {vocabulary - 1}"
        raise InputError(f"sequence {index} holds the token id {wrong[0]}{limit}")


def appended(
    label: str, tokens: Tokens, pending: Sequence[Ints], vocabulary: int | None, can_pad: bool
) -> tuple[Ints, ...]:
    """Return what each sequence of a cache is to run next, what is pending first.

    Raises:
        InputError: as `as_rows`; there are other sequences, or no tokens; or they differ in number
            and the model, called ``label``, cannot tell padding from tokens.
    """
    given = as_rows(tokens, vocabulary)
    if len(given) != len(pending):
        raise InputError(
            f"the cache holds {len(pending)} sequences, but tokens of {len(given)} are given"
        )
    rows = tuple(np.concatenate(pair) for pair in zip(pending, given))
    if not any(row.size for row in rows):
        raise InputError("there are no tokens to append; give at least one")
    if len({row.size for row in rows}) > 1 and not can_pad:
        raise InputError(
            f"{label}: sequences of different lengths need a mask and positions that would tell"
            " padding from tokens; run them one by one"
        )
    return rows


def padded(rows: Sequence[Ints]) -> tuple[Ints, Bools]:
    """Return ids ``[B, S]`` and which of them are tokens, each row as far right as it goes."""
    longest = max(row.size for row in rows)
    ids = np.full((len(rows), longest), PADDING, np.int64)
    valid = np.zeros((len(rows), longest), np.bool_)
    for index, row in enumerate(rows):
        if row.size:
            ids[index, -row.size :] = row
            valid[index, -row.size :] = True
    return ids, valid
