"""Operations and bytes of each form, stage by stage.

``bytes`` of a stage that is still being made counts numbers; `_in_bytes` turns them into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.cost_model.forms import FOLDS_OUTPUT, FOLDS_QUERY, CostForm
from mla_opt.cost_model.hardware import DEFAULT_HARDWARE, Hardware
from mla_opt.cost_model.weights import query_width, w_uk, w_uv
from mla_opt.cost_model.workload import DECODE, Workload
from mla_opt.geometry import MlaGeometry


@dataclass(frozen=True, slots=True)
class Stage:
    """One operator: its name, floating-point operations, and bytes to and from memory."""

    name: str
    flops: float
    bytes: float

    def seconds(self, hardware: Hardware) -> float:
        """Return the roofline time, with one launch."""
        work = max(self.flops / hardware.flops, self.bytes / hardware.bandwidth)
        return work + hardware.launch_seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """One form at one workload: its stages in order."""

    form: CostForm
    stages: tuple[Stage, ...]

    @property
    def flops(self) -> float:
        """Floating-point operations of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes(self) -> float:
        """Bytes moved by all stages: weights, activations and cache."""
        return sum(stage.bytes for stage in self.stages)

    def seconds(self, hardware: Hardware = DEFAULT_HARDWARE) -> float:
        """Return the time on ``hardware``: the stages one after the other."""
        return sum(stage.seconds(hardware) for stage in self.stages)


def cost(
    geometry: MlaGeometry, form: CostForm, *, dtype_bytes: int, workload: Workload = DECODE
) -> Cost:
    """Return operations and bytes of one attention in ``form``, projections included."""
    if form in ("expanded", "expanded-cache"):
        stages = _expanded_stages(geometry, form, workload)
    else:
        stages = _absorbed_stages(geometry, form, workload)
    return Cost(form, tuple(_in_bytes(stage, dtype_bytes) for stage in stages))


def attention_stage(
    geometry: MlaGeometry, form: CostForm, *, dtype_bytes: int, workload: Workload = DECODE
) -> Stage:
    """Return the attention alone, without any projection; expanding the cache counts as part."""
    if form == "expanded":
        stage = _reexpanding_attention(geometry, workload)
    elif form == "expanded-cache":
        stage = _expanded_attention(geometry, workload)
    else:
        stage = _latent_attention(geometry, workload)
    return _in_bytes(stage, dtype_bytes)


def _in_bytes(stage: Stage, dtype_bytes: int) -> Stage:
    return Stage(stage.name, stage.flops, dtype_bytes * stage.bytes)


def _projection(name: str, rows: int, weights: int, width_in: int, width_out: int) -> Stage:
    return Stage(name, 2 * rows * weights, weights + rows * (width_in + width_out))


def _absorbed_stages(
    geometry: MlaGeometry, form: CostForm, workload: Workload
) -> tuple[Stage, ...]:
    return (
        *_query_stages(geometry, form, workload),
        _latent_attention(geometry, workload),
        *_output_stages(geometry, form, workload),
    )


def _query_stages(geometry: MlaGeometry, form: CostForm, workload: Workload) -> tuple[Stage, ...]:
    heads, rows, width = geometry.num_heads, workload.tokens, query_width(geometry)
    if form in FOLDS_QUERY:
        out = heads * geometry.latent_width
        return (_projection("W_UQ W_UK", rows, width * out, width, out),)
    full = heads * geometry.qk_head_dim
    up = _projection("W_UQ", rows, width * full, width, full)
    narrow, wide = heads * geometry.qk_nope_head_dim, heads * geometry.kv_lora_rank
    return up, _projection("W_UK", rows, w_uk(geometry), narrow, wide)


def _output_stages(geometry: MlaGeometry, form: CostForm, workload: Workload) -> tuple[Stage, ...]:
    rows, hidden = workload.tokens, geometry.hidden_size or 0
    wide = geometry.num_heads * geometry.kv_lora_rank
    if form in FOLDS_OUTPUT:
        return (_projection("W_UV W_O", rows, wide * hidden, wide, hidden),)
    narrow = geometry.num_heads * geometry.v_head_dim
    down = _projection("W_UV", rows, w_uv(geometry), wide, narrow)
    return down, _projection("W_O", rows, narrow * hidden, narrow, hidden)


def _expanded_stages(
    geometry: MlaGeometry, form: CostForm, workload: Workload
) -> tuple[Stage, ...]:
    rows, hidden = workload.tokens, geometry.hidden_size or 0
    width, full = query_width(geometry), geometry.num_heads * geometry.qk_head_dim
    narrow = geometry.num_heads * geometry.v_head_dim
    query = _projection("W_UQ", rows, width * full, width, full)
    output = _projection("W_O", rows, narrow * hidden, narrow, hidden)
    return query, *_expanded_core(geometry, form, workload), output


def _expanded_core(geometry: MlaGeometry, form: CostForm, workload: Workload) -> tuple[Stage, ...]:
    kv_b = w_uk(geometry) + w_uv(geometry)
    if form == "expanded":
        core = _reexpanding_attention(geometry, workload)
        return (Stage(core.name, core.flops, core.bytes + kv_b),)
    new = _projection(
        "W_UK W_UV", workload.tokens, kv_b, geometry.kv_lora_rank, geometry.expanded_width
    )
    return new, _expanded_attention(geometry, workload)


def _latent_attention(geometry: MlaGeometry, workload: Workload) -> Stage:
    per_pair = geometry.latent_width + geometry.kv_lora_rank
    heads = geometry.num_heads
    moved = workload.keys * geometry.latent_width + workload.tokens * heads * per_pair
    return Stage("latent attention", 2 * heads * workload.scores * per_pair, moved)


def _expanded_attention(geometry: MlaGeometry, workload: Workload) -> Stage:
    per_pair = geometry.qk_head_dim + geometry.v_head_dim
    moved = (workload.keys + workload.tokens) * geometry.expanded_width
    return Stage("attention", 2 * geometry.num_heads * workload.scores * per_pair, moved)


def _reexpanding_attention(geometry: MlaGeometry, workload: Workload) -> Stage:
    attention = _expanded_attention(geometry, workload)
    expansion = 2 * workload.keys * (w_uk(geometry) + w_uv(geometry))
    # Expanded rows go out to memory once and come back once.
    moved = workload.keys * (geometry.latent_width + geometry.expanded_width)
    return Stage("expand and attend", attention.flops + expansion, attention.bytes + moved)
