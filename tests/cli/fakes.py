"""Stand-ins for the API, which answer at once and remember what they were asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from mla_opt.events import Event, PassFinished, PassStarted, VerifyProgress
from mla_opt.report import InspectionReport, OptimizationReport
from tests.report import examples


@dataclass(frozen=True)
class Outcome:
    """What a pass reports."""

    matched: int = 3
    rewritten: int = 2
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What the API's ``optimize`` returns."""

    model: ir.Model
    report: OptimizationReport


EVENTS: tuple[Event, ...] = (
    PassStarted("find_latent_attention", 0, 1),
    PassFinished("find_latent_attention", Outcome(), 0.25, lambda: "graph [batch, 1] text"),
    VerifyProgress(0, 2, "prefill"),
)


@dataclass
class FakeApi:
    """Answers with the example report, or raises ``error`` instead."""

    error: BaseException | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    report: OptimizationReport = field(
        default_factory=lambda: replace(examples.report(), input=None, output=None)
    )

    def optimize(
        self, model: ir.Model, *, observer: Callable[[Event], None] | None = None, **options: Any
    ) -> Result:
        self.asked = options
        if self.error is not None:
            raise self.error
        for event in EVENTS:
            if observer is not None:
                observer(event)
        return Result(model, self.report)

    def inspect(self, model: ir.Model) -> InspectionReport:
        assert isinstance(model, ir.Model)
        if self.error is not None:
            raise self.error
        return replace(examples.inspection(), model=None)
