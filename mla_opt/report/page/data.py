"""Everything that a page shows and computes from, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mla_opt.cost_model import DECODE, HARDWARE, Hardware, Workload
from mla_opt.report.inspection import InspectionReport, with_costs
from mla_opt.report.page.fate import fates
from mla_opt.report.page.layers import Layer, layers
from mla_opt.report.plain import to_plain
from mla_opt.report.report import OptimizationReport


@dataclass(frozen=True, slots=True)
class PageData:
    """What a page is made of; its plain form is in the page.

    Attributes:
        inspection: of the model as it was exported.
        optimized: of the optimized model, if there is one.
        optimization: the report of the run that made it, if there is one.
        workload: where the sliders start.
        hardware: the machines to choose from; the first is chosen.
        layers: the latent attentions, those that are alike in one.
    """

    inspection: InspectionReport
    optimized: InspectionReport | None
    optimization: OptimizationReport | None
    workload: Workload
    layers: tuple[Layer, ...]
    hardware: Mapping[str, Hardware] = field(default_factory=lambda: HARDWARE)

    def to_json(self) -> str:
        """Return the data as JSON that can stand in a page: without ``<``, ``>`` and ``&``."""
        text = json.dumps(to_plain(self), separators=(",", ":"), allow_nan=False)
        for letter in "<>&":
            text = text.replace(letter, f"\\u{ord(letter):04x}")
        return text


def page_data(
    inspection: InspectionReport,
    optimized: InspectionReport | None = None,
    optimization: OptimizationReport | None = None,
    *,
    workload: Workload = DECODE,
) -> PageData:
    """Put together what a page shows.

    Args:
        inspection: what ``inspect`` says of the model as it was exported.
        optimized: what it says of the optimized model.
        optimization: the report of the run that made that.
        workload: where the sliders start, and what the first figures are for.
    """
    alike = layers(inspection, fates(inspection, optimized, optimization))
    costed = with_costs(inspection, workload)
    return PageData(costed, optimized, optimization, workload, alike)
