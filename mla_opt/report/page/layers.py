"""Attentions that are alike, with all that a page needs to cost them at any batch and context."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from mla_opt import cost_model
from mla_opt.cost_model import COST_FORMS, CostForm, StageTerms, Workload
from mla_opt.geometry import MlaGeometry
from mla_opt.report.grouping import Group, group
from mla_opt.report.inspection import AttentionReport, InspectionReport
from mla_opt.report.page.drawing import Drawing, draw
from mla_opt.report.page.fate import Fate, geometry_of
from mla_opt.report.site import dtype_bytes
from mla_opt.sites import CacheFamily, PrefillForm


@dataclass(frozen=True, slots=True)
class FormTerms:
    """One form of an attention: its weights, and its stages at every call."""

    form: CostForm
    weight_bytes: int
    stages: tuple[StageTerms, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """Attentions that cost the same, before and after.

    ``cache_bytes_per_token_*`` and the terms of the forms are those of one attention.
    ``prefill_crossover`` is the number of new tokens from which on expanding is cheaper, for a
    context without bound; ``None`` where it never is. ``drawings_after`` are of the form
    for decoding and, where it is another, of that for long queries.
    """

    label: str
    names: tuple[str, ...]
    geometry: MlaGeometry
    dtype: str
    before: CostForm
    after: Fate
    cache_bytes_per_token_before: int
    cache_bytes_per_token_expanded: int
    prefill_crossover: float | None
    forms: tuple[FormTerms, ...]
    drawing_before: Drawing
    drawings_after: tuple[Drawing, ...]

    def form_after(self, workload: Workload) -> CostForm:
        """Return the form that the attention takes afterwards for one call."""
        if workload.query_len == 1 or not self._expands(workload):
            return self.after.form
        return "expanded-cache" if self.after.form == "expanded-cache" else "expanded"

    def _expands(self, workload: Workload) -> bool:
        prefill: PrefillForm = self.after.prefill
        if prefill != "auto":
            return prefill == "expanded"
        return workload.query_len > self.geometry.crossover_at(workload.total_len)


def layers(inspection: InspectionReport, fates: Mapping[str, Fate]) -> tuple[Layer, ...]:
    """Return the latent attentions of a model, those that are alike in one."""

    def key(attention: AttentionReport) -> Hashable:
        fate = fates[attention.name]
        return attention.geometry, attention.dtype, attention.cache_family, fate

    groups = group(inspection.matched, key=key, name=lambda each: each.name)
    return tuple(_layer(members, fates[members.members[0].name]) for members in groups)


def _layer(members: Group[AttentionReport], fate: Fate) -> Layer:
    first = members.members[0]
    geometry, size, family = geometry_of(first), dtype_bytes(first.dtype), first.cache_family
    before = cost_model.form_before(family)
    cached = cost_model.cache_bytes_per_token(geometry, family, size)
    crossover = geometry.prefill_crossover
    return Layer(
        label=members.label,
        names=tuple(each.name for each in members.members),
        geometry=geometry,
        dtype=first.dtype,
        before=before,
        after=fate,
        cache_bytes_per_token_before=cached,
        cache_bytes_per_token_expanded=cost_model.cache_bytes_per_token(geometry, "expanded", size),
        prefill_crossover=None if crossover == float("inf") else crossover,
        forms=tuple(_form(geometry, form, size) for form in COST_FORMS),
        drawing_before=draw(geometry, before, family, size, cached),
        drawings_after=_drawings(geometry, fate, family, size),
    )


def _drawings(
    geometry: MlaGeometry, fate: Fate, family: CacheFamily, size: int
) -> tuple[Drawing, ...]:
    forms: tuple[CostForm, ...] = (fate.form,)
    if fate.prefill != "absorbed" and fate.form not in ("expanded", "expanded-cache"):
        forms = (fate.form, "expanded")
    return tuple(draw(geometry, f, family, size, fate.cache_bytes_per_token) for f in forms)


def _form(geometry: MlaGeometry, form: CostForm, size: int) -> FormTerms:
    stages = cost_model.stage_terms(geometry, form, dtype_bytes=size)
    return FormTerms(form, cost_model.weight_bytes(geometry, form, size), stages)
