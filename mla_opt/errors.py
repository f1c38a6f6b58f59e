"""Every error mla-opt raises on purpose, and the stable codes of its refusals.

A message says what is wrong, where (file, node, attribute), and what to do about it, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class MlaOptError(Exception):
    """Base of every error raised on purpose."""


class InputError(MlaOptError):
    """A file, option or model that cannot be used. The command line exits with 2."""


class Report(Protocol):
    """What is read of a report that came to no success: `mla_opt.OptimizationReport` is one."""

    @property
    def sites(self) -> tuple[Any, ...]:
        """The attentions that were rewritten."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why the others were not."""

    @property
    def verification(self) -> Mapping[str, object] | None:
        """The parity report as plain JSON; ``None`` when it did not run."""

    def to_json(self) -> str:
        """All of it."""


class ReportedError(MlaOptError):
    """An outcome that is no success, with the report of how it came about."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class NothingMatchedError(ReportedError):
    """No latent attention was found. The command line exits with 3."""


class RefusedError(NothingMatchedError):
    """What was asked for by name cannot be done to every latent attention. Exit code 3, too."""


class VerificationError(ReportedError):
    """The optimized model does not compute what the original computes. Exit code 4."""


class KernelUnavailableError(MlaOptError):
    """There is no compiled kernel library, and something was asked of it."""


class PassError(MlaOptError):
    """A pass found its pre- or postcondition broken: a defect of ours, never of the input."""


CACHE_NOT_RECOGNIZED = "cache_not_recognized"
"""Code of a refusal: a latent attention whose cache cannot be given another layout."""

MASK_NOT_CAUSAL = "mask_not_causal"
"""Code of a refusal: a mask that does more than to hide the keys behind each query."""

TOKENS_MIXED = "tokens_mixed"
"""Code of a refusal: tokens are not computed each by itself outside the attentions."""

NOT_PACKABLE = "not_packable"
"""Code of a refusal: an attention that PagedAttention's contract does not know."""

REFUSALS_OF_TARGETS = frozenset({MASK_NOT_CAUSAL, TOKENS_MIXED, NOT_PACKABLE})
"""Codes of refusals that leave nothing of what a target was asked for."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an attention was left as it was.

    ``site`` names the attention, ``code`` is stable across versions, ``reason`` is one sentence,
    ``nodes`` names where, and ``remedy`` says what would change it.
    """

    site: str
    code: str
    reason: str
    nodes: tuple[str, ...] = ()
    remedy: str = ""


def nothing_matched(refusals: Sequence[Refusal]) -> str:
    """Say why no attention of a model is latent, given why each of them is not."""
    if not refusals:
        return "the model has no attention that mla-opt can see"
    codes = sorted({refusal.code for refusal in refusals})
    return f"none of {len(refusals)} attentions is latent ({', '.join(codes)})"


_MEMORY_WORDS = ("bad_alloc", "bad allocation", "allocate memory", "arena alloc", "out of memory")
"""How C++, ONNX Runtime, the C library, protobuf and PyTorch say that there is no memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, in the words of any library."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _MEMORY_WORDS)


def require_memory(error: BaseException) -> None:
    """Raise `MemoryError` in the place of an error that says that there was not enough memory.

    Raises:
        MemoryError: it does. No model is wrong because of it, so nothing else may catch it.
    """
    if is_out_of_memory(error):
        raise MemoryError(one_line(error)) from error


_LONGEST = 300


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line that a person can read.

    Libraries put whole graphs into their messages and keep the cause in the error behind it, so
    where one is too long the cause is told, and no more of it than fits.
    """
    text = " ".join(str(error).split())
    while len(text) > _LONGEST and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        text = " ".join(str(error).split())
    kept = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"{type(error).__name__}: {kept}" if kept else type(error).__name__
