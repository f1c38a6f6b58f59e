"""Every error mla-opt raises on purpose, and the stable codes of its refusals.

A message says what is wrong, where (file, node, attribute), and what to do about it, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
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
