"""What is alike is told once: attentions, operators, ports and refusals of many layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mla_opt.errors import Refusal
from mla_opt.report.grouping import Group, group
from mla_opt.report.inspection import AttentionReport, OperatorReport
from mla_opt.report.report import InterfaceChange, SiteReport


def refusals(told: Iterable[Refusal]) -> Sequence[Group[Refusal]]:
    """Return refusals, those of one code, reason and remedy in one."""
    return group(told, key=lambda r: (r.code, r.reason, r.remedy), name=lambda r: r.site)


def reasons(attentions: Sequence[AttentionReport]) -> Sequence[Group[AttentionReport]]:
    """Return attentions, those with the same forms for the same reasons in one."""

    def key(one: AttentionReport) -> tuple[object, ...]:
        return one.form, one.form_reason, one.prefill, one.prefill_reason

    return group(attentions, key=key, name=lambda one: one.name)


def sites(rewritten: Sequence[SiteReport]) -> Sequence[Group[SiteReport]]:
    """Return rewritten attentions, those that were rewritten alike in one."""

    def key(site: SiteReport) -> tuple[object, ...]:
        layouts = (site.cache_layout_before, site.cache_layout_after)
        rows = (site.cache_bytes_per_token_before, site.cache_bytes_per_token_after)
        return site.geometry, site.dtype, site.form, site.prefill, *layouts, *rows, site.notes

    return group(rewritten, key=key, name=lambda site: site.name)


def changes(made: Sequence[InterfaceChange]) -> Sequence[Group[InterfaceChange]]:
    """Return changed inputs and outputs, those of one shape in one."""

    def key(one: InterfaceChange) -> tuple[object, ...]:
        sides = (one.before, one.after)
        shapes = [None if side is None else (side.dtype, side.shape) for side in sides]
        return one.kind, *shapes, one.why

    def name(one: InterfaceChange) -> str:
        port = one.before or one.after
        return "" if port is None else port.name

    return group(made, key=key, name=name)


def operators(found: Sequence[OperatorReport]) -> Sequence[Group[OperatorReport]]:
    """Return fused operators, those alike in all but the name in one."""

    def key(one: OperatorReport) -> tuple[object, ...]:
        widths = (one.num_heads, one.qk_nope_head_dim, one.qk_rope_head_dim, one.v_head_dim)
        kept = (one.cache, one.cache_dtype, one.form, one.prefill_threshold)
        return widths, one.kv_lora_rank, one.dtype, kept, one.operator

    return group(found, key=key, name=lambda one: one.name)
