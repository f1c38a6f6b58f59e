"""What became of each attention of a model, or would: its form, and what it caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mla_opt import cost_model
from mla_opt.cost_model import CostForm
from mla_opt.geometry import MlaGeometry
from mla_opt.report.inspection import AttentionReport, InspectionReport, OperatorReport
from mla_opt.report.report import OptimizationReport, SiteReport
from mla_opt.report.site import dtype_bytes
from mla_opt.sites import CacheFamily, PrefillForm

#: Element types of caches whose rows have scales beside their codes.
_CODES = ("int8", "float8e4m3fn")

Source = Literal["report", "model", "default"]


@dataclass(frozen=True, slots=True)
class Fate:
    """One attention afterwards.

    Attributes:
        form: how it takes a decode step.
        prefill: the form for long queries.
        cache_bytes_per_token: of its cache; ``None`` where nothing here tells.
        source: ``report`` of the run that rewrote it, the optimized ``model``, or what ``optimize``
            does by ``default``.
    """

    form: CostForm
    prefill: PrefillForm
    cache_bytes_per_token: int | None
    source: Source


def fates(
    inspection: InspectionReport,
    optimized: InspectionReport | None = None,
    optimization: OptimizationReport | None = None,
) -> dict[str, Fate]:
    """Return what became of every latent attention of ``inspection``, by its name.

    The report of the run says it best; else the optimized model does. Where one of the two is given
    and does not name an attention, it was left as it was. Without both it is told what ``optimize``
    does if nothing else is asked for.
    """
    sites = None if optimization is None else {site.name: site for site in optimization.sites}
    operators = None if optimized is None else {each.name: each for each in optimized.operators}
    return {each.name: _fate(each, sites, operators) for each in inspection.matched}


def _fate(
    attention: AttentionReport,
    sites: Mapping[str, SiteReport] | None,
    operators: Mapping[str, OperatorReport] | None,
) -> Fate:
    if sites is not None:
        site = sites.get(attention.name)
        return _left(attention, "report") if site is None else _of_site(site)
    if operators is not None:
        operator = operators.get(attention.name)
        return _left(attention, "model") if operator is None else _of_operator(attention, operator)
    after = _after_form(attention.form, attention.cache_family)
    cached = _cached(attention, "none" if attention.cache_family == "none" else "latent")
    return Fate(after, attention.prefill or "auto", cached, "default")


def _left(attention: AttentionReport, source: Source) -> Fate:
    form = cost_model.form_before(attention.cache_family)
    return Fate(form, "expanded", _cached(attention, attention.cache_family), source)


def _of_site(site: SiteReport) -> Fate:
    form = _after_form(site.form, site.cache_family)
    return Fate(form, site.prefill, site.cache_bytes_per_token_after, "report")


def _of_operator(attention: AttentionReport, operator: OperatorReport) -> Fate:
    form = _after_form(operator.form, attention.cache_family)
    # The threshold is that of a function body; a kernel may expand earlier or later.
    prefill: PrefillForm = "absorbed" if operator.prefill_threshold is None else "auto"
    return Fate(form, prefill, _operator_cache(attention, operator), "model")


def _operator_cache(attention: AttentionReport, operator: OperatorReport) -> int | None:
    if operator.cache_dtype in _CODES or operator.cache is None:
        return None
    if attention.cache_family == "none":
        return 0
    kept = operator.cache_dtype or attention.dtype
    return cost_model.cache_bytes_per_token(geometry_of(attention), "latent", dtype_bytes(kept))


def _after_form(form: str | None, family: CacheFamily) -> CostForm:
    """The cost model's word for what a site is decoded by."""
    if form == "none":
        return cost_model.form_before(family)
    found: CostForm = next((each for each in cost_model.COST_FORMS if each == form), "factored")
    return found


def _cached(attention: AttentionReport, family: CacheFamily) -> int:
    size = dtype_bytes(attention.dtype)
    return cost_model.cache_bytes_per_token(geometry_of(attention), family, size)


def geometry_of(attention: AttentionReport) -> MlaGeometry:
    """Return the dimensions of an attention that matched."""
    assert attention.geometry is not None, f"{attention.name} matched without a geometry"
    return attention.geometry
