"""What ``inspect`` saw: every attention, matched or not, and what each form of it would cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from mla_opt import cost_model
from mla_opt.cost_model import COST_FORMS, CostForm, Hardware, Workload
from mla_opt.errors import Refusal
from mla_opt.geometry import MlaGeometry
from mla_opt.report.plain import from_plain, to_plain
from mla_opt.report.report import ModelFile
from mla_opt.report.site import dtype_bytes
from mla_opt.sites import CacheFamily, CacheLayout, Form, PrefillForm
from mla_opt.version import tool_version

INSPECTION_SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class FormCost:
    """One form of one attention at the asked batch, query length and context.

    ``seconds`` is the cost model's lower bound on the named machine.
    """

    form: CostForm
    flops: float
    bytes: float
    seconds: float
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class CostFigures:
    """What the cost model says of one attention at ``batch``, ``query_len`` and ``total_len``.

    ``before`` names the form the model is in now. ``prefill_crossover`` is the number of new tokens
    from which on expanding is cheaper in this context, ``None`` when it never is. Cache figures are
    bytes per token of this attention.
    """

    hardware: str
    batch: int
    query_len: int
    total_len: int
    before: CostForm
    prefill_crossover: float | None
    cache_bytes_per_token_before: int
    cache_bytes_per_token_after: int
    forms: tuple[FormCost, ...]


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """One attention: matched with its geometry, or not, with the reason in ``refusal``.

    ``nodes`` names the nodes that make it up. ``form`` and ``prefill`` are what `optimize` takes if
    nothing else is asked for, each with the sentence that says why; ``None`` where nothing matched.
    ``costs`` is filled by :func:`with_costs`.
    """

    name: str
    matched: bool
    geometry: MlaGeometry | None
    cache_family: CacheFamily
    refusal: Refusal | None = None
    nodes: tuple[str, ...] = ()
    dtype: str = "float32"
    form: Form | None = None
    form_reason: str = ""
    prefill: PrefillForm | None = None
    prefill_reason: str = ""
    costs: CostFigures | None = None


@dataclass(frozen=True, slots=True)
class OperatorReport:
    """One attention that mla-opt has rewritten before: what the optimized model says of it.

    ``node`` is its fused operator, ``None`` where the model has standard operators instead. Widths
    are ``None`` where the model does not tell them, ``cache`` (how the rows lie that the operator
    reads, ``rows`` for none) where there is no operator, ``cache_dtype`` where it reads no cache,
    ``form`` where there is no record.
    ``prefill_threshold`` is the number of new tokens from which on the site expands by its function
    body, ``None`` where it never does.
    """

    name: str
    node: str | None
    num_heads: int | None
    qk_nope_head_dim: int | None
    qk_rope_head_dim: int | None
    v_head_dim: int | None
    kv_lora_rank: int
    scale: float
    dtype: str
    cache: CacheLayout | None
    cache_dtype: str | None
    form: Form | None
    prefill_threshold: int | None

    @property
    def operator(self) -> str:
        """The operator's name, without the number that its body may have."""
        if self.node is None:
            return "standard operators"
        names = ("MultiHeadLatentAttention", "PagedAttention")
        return next((name for name in names if f"::{name}" in self.node), "LatentAttention")


@dataclass(frozen=True, slots=True)
class InspectionReport:
    """Every attention of one model. ``model`` is ``None`` when it did not come from a file.

    ``operators`` are those that were rewritten before, in an optimized model.
    """

    attentions: tuple[AttentionReport, ...]
    model: ModelFile | None = None
    notes: tuple[str, ...] = ()
    operators: tuple[OperatorReport, ...] = ()
    tool_version: str = field(default_factory=tool_version)
    schema_version: int = INSPECTION_SCHEMA_VERSION

    @property
    def matched(self) -> tuple[AttentionReport, ...]:
        """The latent attentions among them."""
        return tuple(attention for attention in self.attentions if attention.matched)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why the others are not."""
        return tuple(a.refusal for a in self.attentions if a.refusal is not None)

    def to_json(self) -> str:
        """Return the report as indented JSON, ending in a newline."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> InspectionReport:
        """Read what :meth:`to_json` wrote; raises ``ValueError`` if it does not fit."""
        return from_plain(cls, json.loads(text))


def with_costs(
    report: InspectionReport,
    workload: Workload,
    hardware: Hardware = cost_model.DEFAULT_HARDWARE,
) -> InspectionReport:
    """Return ``report`` with the cost model's figures on every matched attention."""
    attentions = (_with_costs(attention, workload, hardware) for attention in report.attentions)
    return replace(report, attentions=tuple(attentions))


def _with_costs(
    attention: AttentionReport, workload: Workload, hardware: Hardware
) -> AttentionReport:
    if not attention.matched or attention.geometry is None:
        return attention
    figures = _figures(attention.geometry, attention, workload, hardware)
    return replace(attention, costs=figures)


def _figures(
    geometry: MlaGeometry, attention: AttentionReport, workload: Workload, hardware: Hardware
) -> CostFigures:
    size, family = dtype_bytes(attention.dtype), attention.cache_family
    prefill = cost_model.choose_prefill(geometry, total_len=workload.total_len)
    after: CacheFamily = "none" if family == "none" else "latent"
    return CostFigures(
        hardware=hardware.name,
        batch=workload.batch,
        query_len=workload.query_len,
        total_len=workload.total_len,
        before=cost_model.form_before(family),
        prefill_crossover=prefill.crossover,
        cache_bytes_per_token_before=cost_model.cache_bytes_per_token(geometry, family, size),
        cache_bytes_per_token_after=cost_model.cache_bytes_per_token(geometry, after, size),
        forms=tuple(_form_cost(geometry, f, size, workload, hardware) for f in COST_FORMS),
    )


def _form_cost(
    geometry: MlaGeometry, form: CostForm, size: int, workload: Workload, hardware: Hardware
) -> FormCost:
    cost = cost_model.cost(geometry, form, dtype_bytes=size, workload=workload)
    weights = cost_model.weight_bytes(geometry, form, size)
    return FormCost(form, cost.flops, cost.bytes, cost.seconds(hardware), weights)
