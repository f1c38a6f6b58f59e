"""What one run of ``optimize`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mla_opt.cli._options import WeightsFiles

#: What the API knows nothing of.
_OWN = (
    "model",
    "output",
    "force",
    "report",
    "weights_files",
    "print_between_passes",
    "time_passes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of ``optimize``: where to, how, and what to tell."""

    model: Path
    output: Path
    target: str = "onnxruntime"
    absorb: str = "auto"
    cache: str = "keep"
    cache_type: str = "keep"
    prefill: str = "auto"
    keep_activation_quantization: bool = False
    weights: str = "float"
    matmul_nbits: str = "keep"
    weights_files: str = "copy"
    verify: bool | Literal["by-layer"] = True
    passes: tuple[str, ...] | None = None
    allow_unmatched: bool = False
    force: bool = False
    report: Path | None = None
    print_between_passes: bool = False
    time_passes: bool = False

    @property
    def shares(self) -> bool:
        """Whether weights stay in the files of the model."""
        return self.weights_files == WeightsFiles.SHARE

    def api_options(self) -> dict[str, Any]:
        """Return the keyword arguments of ``mla_opt.api.optimize``."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OWN
        }

    def asked(self) -> dict[str, Any]:
        """What a run is known by that may be done already."""
        report = None if self.report is None else self.report.absolute()
        places = {"model": self.model.absolute(), "output": self.output.absolute()}
        return {**self.api_options(), **places, "report": report, "shares": self.shares}

    @property
    def repeats(self) -> bool:
        """Whether another run would make the same and tell nothing else."""
        from mla_opt.passes import BUILT_IN

        tells = self.print_between_passes or self.time_passes
        return not tells and set(self.passes or ()) <= set(BUILT_IN)
