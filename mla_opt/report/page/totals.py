"""All latent attentions of a model together, at the call that a page starts with.

The page works out the same, by the same terms, where its sliders stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt import cost_model
from mla_opt.cost_model import CostForm, Hardware, Workload
from mla_opt.report.page.data import PageData
from mla_opt.report.page.layers import Layer
from mla_opt.report.site import dtype_bytes


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all latent attentions.

    ``cache_*`` are the bytes of the caches of all B sequences, ``cache_after`` ``None`` where that
    is not known. ``seconds_*`` are the cost model's lower bound for one call.
    """

    attentions: int
    hardware: str
    cache_before: int
    cache_after: int | None
    seconds_before: float
    seconds_after: float


def totals(data: PageData) -> Totals:
    """Return the sums of a page."""
    machine = next(iter(data.hardware.values()))
    return totals_at(data.layers, data.workload, machine)


def totals_at(layers: tuple[Layer, ...], workload: Workload, machine: Hardware) -> Totals:
    """Return the sums for one call on one machine."""
    after = [_cache(each, each.after.cache_bytes_per_token, workload) for each in layers]
    known = [each for each in after if each is not None]
    before = [_cache(each, each.cache_bytes_per_token_before, workload) or 0 for each in layers]
    forms = [(each, each.before, each.form_after(workload)) for each in layers]
    return Totals(
        attentions=sum(len(each.names) for each in layers),
        hardware=machine.name,
        cache_before=sum(before),
        cache_after=sum(known) if len(known) == len(after) else None,
        seconds_before=sum(_seconds(each, now, workload, machine) for each, now, _ in forms),
        seconds_after=sum(_seconds(each, then, workload, machine) for each, _, then in forms),
    )


def _cache(layer: Layer, row: int | None, workload: Workload) -> int | None:
    return None if row is None else len(layer.names) * row * workload.keys


def _seconds(layer: Layer, form: CostForm, workload: Workload, machine: Hardware) -> float:
    cost = cost_model.cost(
        layer.geometry, form, dtype_bytes=dtype_bytes(layer.dtype), workload=workload
    )
    return len(layer.names) * cost.seconds(machine)
