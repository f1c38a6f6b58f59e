"""Complete the plain facts of a rewritten site with what the cost model says of it."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt import cost_model
from mla_opt.cost_model import CostForm, Workload
from mla_opt.geometry import MlaGeometry
from mla_opt.report.report import SiteReport, StepCost
from mla_opt.sites import CacheFamily, CacheLayout, Form, LatentAttentionSite, PrefillForm

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What the passes know of a rewritten site when they are done, without any graph handle.

    ``form_reason`` and ``prefill_reason`` say why, in a sentence: the cost model's, or that it was
    asked for. Weight bytes are those of the graph, before and after.
    """

    name: str
    geometry: MlaGeometry
    dtype: str
    form: Form
    form_reason: str
    prefill: PrefillForm
    prefill_reason: str
    cache_family: CacheFamily
    cache_layout_before: CacheLayout
    cache_layout_after: CacheLayout
    certificate_error: float
    weight_bytes_before: int
    weight_bytes_after: int
    notes: tuple[str, ...] = ()
    cache_dtype_after: str | None = None
    cache_row_bytes: int | None = None

    @classmethod
    def of(cls, site: LatentAttentionSite, dtype: str) -> SiteFacts:
        """Read them off a site that went through all passes."""
        assert site.geometry is not None
        size = dtype_bytes(dtype)
        stored: CostForm = "factored" if site.form == "none" else site.form
        return cls(
            name=site.name,
            geometry=site.geometry,
            dtype=dtype,
            form=site.form,
            form_reason=site.form_reason,
            prefill=site.prefill,
            prefill_reason=site.prefill_reason,
            cache_family=site.family,
            cache_layout_before=site.layout_before,
            cache_layout_after=site.layout_before if site.cache is None else site.cache.layout,
            certificate_error=site.certificate_error,
            weight_bytes_before=cost_model.weight_bytes(site.geometry, "factored", size),
            weight_bytes_after=cost_model.weight_bytes(site.geometry, stored, size),
            notes=tuple(site.notes),
            cache_dtype_after=None if site.cache is None else site.cache.kept_as,
            cache_row_bytes=None if site.cache is None else site.cache.row_bytes,
        )


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one ``dtype`` number; types not listed (fp8, int8) count as one byte."""
    return DTYPE_BYTES.get(dtype, 1)


def step_cost(geometry: MlaGeometry, form: CostForm, *, dtype: str, workload: Workload) -> StepCost:
    """Return operations and bytes per new token of one attention in ``form``."""
    cost = cost_model.cost(geometry, form, dtype_bytes=dtype_bytes(dtype), workload=workload)
    return StepCost(cost.flops / workload.tokens, cost.bytes / workload.tokens)


def site_report(facts: SiteFacts, *, context: int = 8192) -> SiteReport:
    """Build the report of one rewritten site.

    Args:
        facts: what the passes recorded.
        context: tokens of context of the decode step to report, new token included.
    """
    geometry, family = facts.geometry, facts.cache_family
    size, decode = dtype_bytes(facts.dtype), Workload(1, 1, context)
    before = cost_model.form_before(family)
    after: CostForm = before if facts.form == "none" else facts.form
    return SiteReport(
        name=facts.name,
        geometry=geometry,
        dtype=facts.dtype,
        form=facts.form,
        form_reason=facts.form_reason,
        prefill=facts.prefill,
        prefill_reason=facts.prefill_reason,
        prefill_crossover=_finite(geometry.prefill_crossover),
        cache_family=family,
        cache_layout_before=facts.cache_layout_before,
        cache_layout_after=facts.cache_layout_after,
        cache_bytes_per_token_before=cost_model.cache_bytes_per_token(geometry, family, size),
        cache_bytes_per_token_after=_cache_after(facts),
        weight_bytes_before=facts.weight_bytes_before,
        weight_bytes_after=facts.weight_bytes_after,
        decode_context=context,
        decode_before=step_cost(geometry, before, dtype=facts.dtype, workload=decode),
        decode_after=step_cost(geometry, after, dtype=facts.dtype, workload=decode),
        certificate_error=_finite(facts.certificate_error),
        notes=facts.notes,
    )


def _cache_after(facts: SiteFacts) -> int:
    if facts.cache_row_bytes is not None:
        return facts.cache_row_bytes
    size, family = dtype_bytes(facts.cache_dtype_after or facts.dtype), facts.cache_family
    if family != "none" and facts.form != "none":
        family = "latent"
    return cost_model.cache_bytes_per_token(facts.geometry, family, size)


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
