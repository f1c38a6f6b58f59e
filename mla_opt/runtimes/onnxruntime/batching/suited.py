"""Whether a model may be given sequences of different lengths with no padding between them.

Where the rows of a sequence lie is then not where they would lie in a padded batch. To a mask that
is handed in and positions that are each sequence's own that makes no difference; to a window that
the graph measures from the longest past it does. Structure tells the first, a trial the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.runtimes.onnxruntime.batching.slots import Slots
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.runtimes.prompts import Ints

#: Runs one new token of each of the first sequences, given the rows that these have; returns
#: logits ``[n, V]``, in memory that the next call may reuse.
RunStep = Callable[[Ints, Ints], npt.NDArray[Any]]

#: Largest difference of logits that may be rounding, in standard deviations of the logits. What a
#: window leaves out changes them by about one.
TOLERANCE = 0.1
#: Tokens that are tried. In a mixture of experts one of them may lie evenly between two experts.
TRIALS = 3


def check_structure(decoder: Decoder) -> None:
    """Check what the file tells.

    Raises:
        InputError: the caches are no buffers with rows counted for each sequence, the model takes
            no mask and positions of each, or it fixes the batch or the number of new tokens.
    """
    limits = decoder.interface.limits()
    if not decoder.description.counts_each or decoder.interface.starts:
        raise InputError(
            f"{decoder.label}: rows are not counted for each sequence; optimize the model with"
            " `--cache static` (target onnxruntime), and open it with"
            " mla_opt.runtimes.onnxruntime.session"
        )
    if not decoder.can_pad:
        raise InputError(
            f"{decoder.label}: has no mask and positions of each sequence, so sequences of"
            " different lengths cannot share a call; export it with attention_mask and position_ids"
        )
    if limits.batch is not None or limits.query_len is not None:
        what = "sequences" if limits.batch is not None else "tokens"
        raise InputError(
            f"{decoder.label}: takes a fixed number of {what} a call; export it with that dimension"
            " free"
        )


def check_by_trial(decoder: Decoder, slots: Slots, run: RunStep) -> None:
    """Run one short sequence alone, and beside one as long as there are rows.

    Raises:
        InputError: what the short one says depends on the other.
        RunError: ONNX Runtime failed.
    """
    if slots.count < 2 or slots.rows < 2:
        return
    before = min(2, slots.rows - 2)
    far = np.inf
    for trial in range(TRIALS):
        far = min(far, _distance(decoder, slots, run, trial, before))
        if far <= TOLERANCE:
            break
    slots.clear(0, 0, before + 1)
    slots.clear(1, slots.rows - 1, slots.rows)
    if not far <= TOLERANCE:
        raise InputError(
            f"{decoder.label}: what a sequence of {before + 1} tokens says changes by {far:.1g}"
            f" standard deviations beside one of {slots.rows}; its graph looks at how long the"
            " longest is (a window, or activations quantized for all sequences together), so"
            " sequences cannot join and leave; use `generate`, or fewer rows"
        )


def _distance(decoder: Decoder, slots: Slots, run: RunStep, trial: int, before: int) -> float:
    """How far the logits of a short sequence are from those beside a long one."""
    known = decoder.vocabulary or 2
    tokens = np.random.default_rng(trial).integers(1, max(known, 2), before + 1)
    for row, token in enumerate(tokens):
        logits = run(np.array([token]), np.array([row]))
    alone = logits[0].astype(np.float64)
    beside = run(tokens[[-1, 0]], np.array([before, slots.rows - 1]))[0].astype(np.float64)
    return float(np.abs(alone - beside).max() / (alone.std() or 1.0))
