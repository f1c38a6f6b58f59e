"""A report as one page for a browser: everything in it, nothing fetched.

The page is made of the plain forms of :class:`~mla_opt.report.InspectionReport` and
:class:`~mla_opt.report.OptimizationReport`, and of the cost model's own terms, which it evaluates
where its sliders stand. It needs ``jinja2``, which is asked for only when a page is made.
"""

from __future__ import annotations

from mla_opt.report.page.data import PageData, page_data
from mla_opt.report.page.document import render, require_jinja
from mla_opt.report.page.fate import Fate, fates
from mla_opt.report.page.layers import Layer, layers

__all__ = ["Fate", "Layer", "PageData", "fates", "layers", "page_data", "render", "require_jinja"]
