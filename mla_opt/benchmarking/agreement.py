"""Whether what was timed computes the same as the original."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.benchmarking.pair import Pair
from mla_opt.benchmarking.report import Agreement, Compared
from mla_opt.verification.oracle import Run
from mla_opt.verification.parity import ScenarioParity, compare

Array = npt.NDArray[Any]

NOT_COMPARED = Agreement("not", None, None)


def agreement(pair: Pair, reference: Path, candidate: Path, compared: Compared) -> Agreement:
    """Compare what the optimized model wrote with what the original wrote."""
    runs = [_read(path) for path in (reference, candidate)]
    parity = compare(pair.aligner, runs[0], runs[1], pair.tolerance)
    return _worst(parity, compared)


def last_logits(path: Path) -> Array | None:
    """The logits ``[B, vocabulary]`` of the last position of the first call, in a written run.

    Taken for the logits is the output that is widest in its last dimension; `None` where there is
    no output of sequences.
    """
    run = _read(path)
    if not run.calls:
        return None
    outputs = [v for v in run.calls[0].outputs.values() if v.ndim == 3]
    if not outputs:
        return None
    widest: Array = max(outputs, key=lambda value: int(value.shape[-1]))
    return widest[:, -1]


def logits_agreement(reference: Array, candidate: Array, tolerance: float) -> Agreement:
    """Compare logits of a prompt: the largest difference over the spread of the reference's."""
    if reference.shape != candidate.shape:
        shapes = f"logits are {candidate.shape}, the original's {reference.shape}"
        return Agreement("prompt", None, tolerance, "logits", shapes)
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64)).max()
    return Agreement("prompt", float(difference / reference.std()), tolerance, "logits")


def _worst(parity: ScenarioParity, compared: Compared) -> Agreement:
    if parity.skipped is not None:
        return Agreement("not", None, None, problem=f"the original: {parity.skipped}")
    if parity.error is not None:
        return Agreement(compared, None, None, problem=parity.error)
    if not parity.outputs:
        return Agreement("not", None, None, problem="there is no output to compare")
    worst = max(parity.outputs, key=lambda o: (not o.passed, o.relative / (o.tolerance or 1e-30)))
    problem = worst.problem
    if worst.new_nonfinite:
        problem = f"{worst.new_nonfinite} elements are NaN or infinite"
    error = None if problem else worst.relative
    return Agreement(compared, error, worst.tolerance, worst.name, problem)


def _read(path: Path) -> Run:
    run = pickle.loads(path.read_bytes())
    assert isinstance(run, Run)
    return run
