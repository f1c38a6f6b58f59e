"""What a run found and did, as plain frozen data; its JSON, and tables that a person can read.

This package imports nothing heavy: ``rich`` only where tables are drawn, ``onnx`` never.
"""

from __future__ import annotations

from mla_opt.report.inspection import (
    AttentionReport,
    InspectionReport,
    OperatorReport,
    with_costs,
)
from mla_opt.report.report import (
    InterfaceChange,
    ModelFile,
    OptimizationReport,
    PassReport,
    PortSpec,
    SiteReport,
    StepCost,
    StoredBytes,
)
from mla_opt.report.site import SiteFacts, site_report

__all__ = [
    "AttentionReport",
    "InspectionReport",
    "InterfaceChange",
    "ModelFile",
    "OperatorReport",
    "OptimizationReport",
    "PassReport",
    "PortSpec",
    "SiteFacts",
    "SiteReport",
    "StepCost",
    "StoredBytes",
    "site_report",
    "with_costs",
]
