"""Reports as tables for a person. Every function returns something that ``rich`` can print."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mla_opt.errors import Refusal
from mla_opt.report.grouping import Group, group, label
from mla_opt.report.inspection import (
    AttentionReport,
    CostFigures,
    InspectionReport,
    OperatorReport,
)
from mla_opt.report.report import (
    InterfaceChange,
    OptimizationReport,
    PassReport,
    PortSpec,
    SiteReport,
)
from mla_opt.report.units import change, duration, quantity
from mla_opt.report.verification import summary


def optimization_tables(
    report: OptimizationReport, *, timings: bool = False, details: bool = False
) -> Iterator[RenderableType]:
    """Yield what a person wants to see of one optimization, in reading order.

    Args:
        report: the report.
        timings: also the passes with their counts and seconds.
        details: also the reasons for each form, and the notes of sites and passes.
    """
    if report.sites:
        yield sites_table(report.sites)
        yield from _site_reasons(report.sites, details)
    if report.sites and report.stored is not None:
        stored = change(report.stored.before, report.stored.after, "B")
        yield _plain(f"all weights, as stored: {stored}")
    if report.interface_changes:
        yield interface_table(report.interface_changes)
    if report.refusals:
        yield refusals_table(report.refusals)
    if timings and report.passes:
        yield passes_table(report.passes)
    if report.verification is not None:
        yield _plain(summary(report.verification))
    yield from (_plain(f"note: {note}") for note in report.notes)


def inspection_tables(
    report: InspectionReport, *, details: bool = False
) -> Iterator[RenderableType]:
    """Yield every attention, what each form of the latent ones costs, and why others are not.

    Those that were rewritten before come first.
    """
    if not report.attentions and not report.operators:
        yield _plain("no attention found")
    if report.operators:
        yield operators_table(report.operators)
    if report.matched:
        groups = group(report.matched, key=_attention_key, name=lambda a: a.name)
        yield _attentions_table(groups)
        yield from _cost_tables(groups)
    if report.refusals:
        yield refusals_table(report.refusals)
    if details:
        yield _nodes_table(report.attentions)
    yield from (_plain(f"note: {note}") for note in report.notes)


def sites_table(sites: Sequence[SiteReport]) -> Table:
    """Return the rewritten attentions, identical layers in one row."""
    table = _table("Latent attention, rewritten")
    for heading in ("site", "geometry", "form", "cache bytes/token", "decode step", "error"):
        table.add_column(heading, overflow="fold")
    for members in group(sites, key=_site_key, name=lambda site: site.name):
        _add(table, *_site_cells(members))
    return table


def operators_table(operators: Sequence[OperatorReport]) -> Table:
    """Return the attentions that were rewritten before, identical layers in one row."""
    table = _table("Latent attention, optimized already")
    for heading in ("site", "operator", "geometry", "type", "cache", "form"):
        table.add_column(heading, overflow="fold")
    for members in group(operators, key=_operator_key, name=lambda each: each.name):
        first = members.members[0]
        _add(
            table,
            members.label,
            first.operator,
            _widths(first),
            first.dtype,
            _cache_of(first),
            _form(first),
        )
    return table


def _cache_of(operator: OperatorReport) -> str:
    """How the rows lie, and their type where it is another than the queries'."""
    layout, dtype = operator.cache or "-", operator.cache_dtype
    return layout if dtype in (None, operator.dtype) else f"{layout}, {dtype}"


def _operator_key(operator: OperatorReport) -> Hashable:
    return replace(operator, name="", node=operator.operator)


def _widths(operator: OperatorReport) -> str:
    known = {
        "H": operator.num_heads,
        "N": operator.qk_nope_head_dim,
        "R": operator.qk_rope_head_dim,
        "V": operator.v_head_dim,
        "C": operator.kv_lora_rank,
    }
    return " ".join(f"{name}={size}" for name, size in known.items() if size is not None)


def _form(operator: OperatorReport) -> str:
    form = operator.form or "-"
    threshold = operator.prefill_threshold
    return form if threshold is None else f"{form}, expanded from {threshold} new tokens"


def refusals_table(refusals: Sequence[Refusal]) -> Table:
    """Return why attentions were left as they were, one row for each code and reason."""
    table = _table("Left as it was")
    for heading in ("code", "where", "reason", "what would change it"):
        table.add_column(heading, overflow="fold")
    for members in group(
        refusals, key=lambda r: (r.code, r.reason, r.remedy), name=lambda r: r.site
    ):
        first = members.members[0]
        _add(table, first.code, members.label, first.reason, first.remedy)
    return table


def passes_table(passes: Sequence[PassReport]) -> Table:
    """Return the passes in the order they ran."""
    table = _table("Passes")
    table.add_column("pass")
    for heading in ("matched", "rewritten", "seconds"):
        table.add_column(heading, justify="right")
    for one in passes:
        _add(table, one.name, str(one.matched), str(one.rewritten), f"{one.seconds:.3f}")
    table.add_section()
    _add(table, "total", "", "", f"{sum(one.seconds for one in passes):.3f}")
    return table


def interface_table(changes: Sequence[InterfaceChange]) -> Table:
    """Return the inputs and outputs that are not what they were."""
    table = _table("Changed inputs and outputs")
    for heading in ("", "before", "after", "why"):
        table.add_column(heading, overflow="fold")
    for members in group(changes, key=_change_key, name=lambda c: c.why):
        first = members.members[0]
        before = _ports([change.before for change in members.members])
        after = _ports([change.after for change in members.members])
        _add(table, first.kind, before, after, first.why)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", header_style="bold")


def _plain(text: str) -> Text:
    # Text, not str: in a str, rich would take the shape "[batch, 1]" for markup and drop it.
    return Text(text)


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(_plain, cells))


def _site_key(site: SiteReport) -> Hashable:
    cache = (site.cache_family, site.cache_layout_before, site.cache_layout_after)
    weights = (site.weight_bytes_before, site.weight_bytes_after)
    return site.geometry, site.dtype, site.form, site.prefill, cache, weights, site.notes


def _site_cells(members: Group[SiteReport]) -> tuple[str, ...]:
    site = members.members[0]
    cache = _cached(site.cache_bytes_per_token_before, site.cache_bytes_per_token_after)
    step, after = site.decode_before, site.decode_after
    return (
        members.label,
        f"{site.geometry}\n{site.dtype}",
        f"{site.form}\n{_prefill(site)}",
        f"{cache}\n{site.cache_layout_before} -> {site.cache_layout_after}",
        f"{change(step.flops, after.flops, 'FLOP')}\n{change(step.bytes, after.bytes, 'B')}",
        _worst_error(members.members),
    )


def _prefill(site: SiteReport) -> str:
    if site.prefill != "auto" or site.prefill_crossover is None:
        return f"prefill {site.prefill}"
    return f"expanded from {site.prefill_crossover:.0f} new tokens"


def _worst_error(sites: Sequence[SiteReport]) -> str:
    errors = [site.certificate_error for site in sites]
    known = [error for error in errors if error is not None]
    return f"{max(known):.1e}" if len(known) == len(errors) else "not finite"


def _site_reasons(sites: Sequence[SiteReport], details: bool) -> Iterator[RenderableType]:
    context = sites[0].decode_context
    yield _plain(
        f"decode figures: one new token at {context} tokens of context, from the cost model"
    )
    for members in group(sites, key=_site_key, name=lambda site: site.name):
        site, label = members.members[0], members.label
        if details:
            yield _plain(f"{label}: {site.form}: {site.form_reason}")
        if details or site.cache_layout_after == "static":  # where "auto" has no choice
            yield _plain(f"{label}: prefill {site.prefill}: {site.prefill_reason}")
        if details:
            yield from (_plain(f"{label}: {note}") for note in site.notes)


def _change_key(change: InterfaceChange) -> Hashable:
    before = None if change.before is None else (change.before.dtype, change.before.shape)
    after = None if change.after is None else (change.after.dtype, change.after.shape)
    return change.kind, before, after, change.why


def _ports(ports: Sequence[PortSpec | None]) -> str:
    known = [port for port in ports if port is not None]
    if not known:
        return "-"
    first = known[0]
    names = label([port.name for port in known]).replace(" sites)", " of them)")
    shape = (
        "?" if first.shape is None else ", ".join("?" if d is None else str(d) for d in first.shape)
    )
    return f"{names}: {first.dtype} [{shape}]"


def _attention_key(attention: AttentionReport) -> Hashable:
    forms = attention.form, attention.form_reason, attention.prefill, attention.prefill_reason
    return attention.geometry, attention.dtype, attention.cache_family, forms


def _attentions_table(groups: Sequence[Group[AttentionReport]]) -> Table:
    table = _table("Latent attention")
    for heading in ("site", "geometry", "type", "cache", "bytes/token now -> after"):
        table.add_column(heading, overflow="fold")
    for members in groups:
        first = members.members[0]
        geometry = "-" if first.geometry is None else str(first.geometry)
        _add(table, members.label, geometry, first.dtype, first.cache_family, _cache(first.costs))
    return table


def _cache(costs: CostFigures | None) -> str:
    if costs is None:
        return "-"
    return _cached(costs.cache_bytes_per_token_before, costs.cache_bytes_per_token_after)


def _cached(before: int, after: int) -> str:
    """Bytes a token; rows whose cache is not seen, if there is one, are not counted."""
    return change(before, after) if before or after else "no cache seen"


def _cost_tables(groups: Sequence[Group[AttentionReport]]) -> Iterator[RenderableType]:
    for members in groups:
        first = members.members[0]
        if first.costs is None:
            continue
        yield _cost_table(members.label, first.costs)
        yield _plain(f"decode: {first.form}; {first.form_reason}")
        yield _plain(f"prefill: {first.prefill}; {first.prefill_reason}")


def _cost_table(name: str, costs: CostFigures) -> Table:
    where = f"B={costs.batch} S={costs.query_len} T={costs.total_len}"
    table = _table(f"Cost of one attention: {name}, {where}, {costs.hardware}")
    table.add_column("form")
    for heading in ("FLOP", "bytes moved", "weight bytes", "time at least"):
        table.add_column(heading, justify="right")
    fastest = min(costs.forms, key=lambda form: form.seconds)
    for form in costs.forms:
        marks = [
            m for m, on in (("now", form.form == costs.before), ("fastest", form is fastest)) if on
        ]
        _add(
            table,
            form.form + (f" ({', '.join(marks)})" if marks else ""),
            quantity(form.flops),
            quantity(form.bytes, "B"),
            quantity(form.weight_bytes, "B"),
            duration(form.seconds),
        )
    return table


def _nodes_table(attentions: Sequence[AttentionReport]) -> Table:
    table = _table("Nodes")
    table.add_column("attention", overflow="fold")
    table.add_column("nodes", overflow="fold")
    for attention in attentions:
        refused = attention.refusal.nodes if attention.refusal is not None else ()
        _add(table, attention.name, ", ".join(attention.nodes or refused))
    return table
