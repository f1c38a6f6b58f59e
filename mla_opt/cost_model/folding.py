"""Whether to multiply W_UK into W_UQ and W_UV into W_O ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mla_opt.cost_model.forms import FOLDS_OUTPUT, FOLDS_QUERY, AbsorbedForm
from mla_opt.cost_model.hardware import DEFAULT_HARDWARE, Hardware
from mla_opt.cost_model.stages import cost
from mla_opt.cost_model.weights import query_width, weight_bytes, weight_count
from mla_opt.cost_model.workload import DECODE, Workload
from mla_opt.geometry import MlaGeometry
from mla_opt.sites import Form

_FOLDED: tuple[AbsorbedForm, ...] = ("fold-q", "fold-o", "fold")


@dataclass(frozen=True, slots=True)
class FormChoice:
    """The form to take for decoding, and one sentence that says why, with the figures."""

    form: Form
    reason: str


def choose_form(
    geometry: MlaGeometry,
    *,
    dtype_bytes: int,
    workload: Workload = DECODE,
    hardware: Hardware = DEFAULT_HARDWARE,
    can_fold_output: bool = True,
) -> FormChoice:
    """Choose between ``factored`` and the folded forms for decoding.

    A fold is taken when it is the fastest form and leaves the weights no larger. The second
    condition is there because a fold that enlarges them can win only by saving a launch, which is
    far below what this model can predict, and costs memory for good.

    Args:
        geometry: the attention.
        dtype_bytes: bytes per weight.
        workload: the decode step to judge by.
        hardware: the machine to judge by.
        can_fold_output: false when a gate sits between the attention and W_O.
    """
    candidates = [form for form in _FOLDED if _foldable(geometry, form, can_fold_output)]
    if not candidates:
        return FormChoice("factored", "nothing can be folded: " + _why_not(can_fold_output))

    def seconds(form: AbsorbedForm) -> float:
        return cost(geometry, form, dtype_bytes=dtype_bytes, workload=workload).seconds(hardware)

    paying = [form for form in candidates if _pays(geometry, form, seconds)]
    best = min(paying or candidates, key=seconds)
    where = f"{workload.total_len} tokens of context on {hardware.name}"
    reason = _fold_reason(geometry, best, dtype_bytes, seconds, where)
    return FormChoice(best if paying else "factored", reason)


def _foldable(geometry: MlaGeometry, form: AbsorbedForm, can_fold_output: bool) -> bool:
    query = form not in FOLDS_QUERY or query_width(geometry) > 0
    output = form not in FOLDS_OUTPUT or (can_fold_output and geometry.hidden_size is not None)
    return query and output


def _why_not(can_fold_output: bool) -> str:
    if can_fold_output:
        return "the graph does not tell the width of the hidden state"
    return "the graph does not tell the width of the query's input, and a gate precedes W_O"


def _pays(
    geometry: MlaGeometry, form: AbsorbedForm, seconds: Callable[[AbsorbedForm], float]
) -> bool:
    smaller = weight_count(geometry, form) <= weight_count(geometry, "factored")
    return smaller and seconds(form) < seconds("factored")


def _fold_reason(
    geometry: MlaGeometry,
    form: AbsorbedForm,
    dtype_bytes: int,
    seconds: Callable[[AbsorbedForm], float],
    where: str,
) -> str:
    before = weight_bytes(geometry, "factored", dtype_bytes)
    after = weight_bytes(geometry, form, dtype_bytes)
    return (
        f"{form}, the best fold, takes {after / before:.2f}x the weights "
        f"({before / 1e6:.3g} -> {after / 1e6:.3g} MB) and, at {where}, "
        f"{seconds(form) / seconds('factored'):.2f}x the time "
        f"({_micro(seconds('factored'))} -> {_micro(seconds(form))} us)"
    )


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.3g}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"
