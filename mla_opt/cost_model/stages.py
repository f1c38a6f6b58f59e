"""Operations and bytes of each form, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.cost_model.forms import FOLDS_OUTPUT, FOLDS_QUERY, CostForm
from mla_opt.cost_model.hardware import DEFAULT_HARDWARE, Hardware
from mla_opt.cost_model.terms import Terms
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
class StageTerms:
    """One operator at every call: its operations, and the bytes it moves."""

    name: str
    flops: Terms
    bytes: Terms

    def at(self, workload: Workload) -> Stage:
        """Return the operator at one call."""
        return Stage(self.name, self.flops.at(workload), self.bytes.at(workload))


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
    stages = stage_terms(geometry, form, dtype_bytes=dtype_bytes)
    return Cost(form, tuple(stage.at(workload) for stage in stages))


def stage_terms(
    geometry: MlaGeometry, form: CostForm, *, dtype_bytes: int
) -> tuple[StageTerms, ...]:
    """Return the stages of one attention in ``form`` for every call, projections included."""
    if form in ("expanded", "expanded-cache"):
        stages = _expanded_stages(geometry, form)
    else:
        stages = _absorbed_stages(geometry, form)
    return tuple(_in_bytes(stage, dtype_bytes) for stage in stages)


def attention_stage(
    geometry: MlaGeometry, form: CostForm, *, dtype_bytes: int, workload: Workload = DECODE
) -> Stage:
    """Return the attention alone, without any projection; expanding the cache counts as part."""
    if form == "expanded":
        stage = _reexpanding_attention(geometry)
    elif form == "expanded-cache":
        stage = _expanded_attention(geometry)
    else:
        stage = _latent_attention(geometry)
    return _in_bytes(stage, dtype_bytes).at(workload)


def _in_bytes(stage: StageTerms, dtype_bytes: int) -> StageTerms:
    """The functions below count numbers, not bytes."""
    return StageTerms(stage.name, stage.flops, stage.bytes.times(dtype_bytes))


def _projection(name: str, weights: int, width_in: int, width_out: int) -> StageTerms:
    flops = Terms(per_token=2 * weights)
    return StageTerms(name, flops, Terms(fixed=weights, per_token=width_in + width_out))


def _absorbed_stages(geometry: MlaGeometry, form: CostForm) -> tuple[StageTerms, ...]:
    return (
        *_query_stages(geometry, form),
        _latent_attention(geometry),
        *_output_stages(geometry, form),
    )


def _query_stages(geometry: MlaGeometry, form: CostForm) -> tuple[StageTerms, ...]:
    heads, width = geometry.num_heads, query_width(geometry)
    if form in FOLDS_QUERY:
        out = heads * geometry.latent_width
        return (_projection("W_UQ W_UK", width * out, width, out),)
    full = heads * geometry.qk_head_dim
    up = _projection("W_UQ", width * full, width, full)
    narrow, wide = heads * geometry.qk_nope_head_dim, heads * geometry.kv_lora_rank
    return up, _projection("W_UK", w_uk(geometry), narrow, wide)


def _output_stages(geometry: MlaGeometry, form: CostForm) -> tuple[StageTerms, ...]:
    hidden = geometry.hidden_size or 0
    wide = geometry.num_heads * geometry.kv_lora_rank
    if form in FOLDS_OUTPUT:
        return (_projection("W_UV W_O", wide * hidden, wide, hidden),)
    narrow = geometry.num_heads * geometry.v_head_dim
    down = _projection("W_UV", w_uv(geometry), wide, narrow)
    return down, _projection("W_O", narrow * hidden, narrow, hidden)


def _expanded_stages(geometry: MlaGeometry, form: CostForm) -> tuple[StageTerms, ...]:
    hidden = geometry.hidden_size or 0
    width, full = query_width(geometry), geometry.num_heads * geometry.qk_head_dim
    narrow = geometry.num_heads * geometry.v_head_dim
    query = _projection("W_UQ", width * full, width, full)
    output = _projection("W_O", narrow * hidden, narrow, hidden)
    return query, *_expanded_core(geometry, form), output


def _expanded_core(geometry: MlaGeometry, form: CostForm) -> tuple[StageTerms, ...]:
    kv_b = w_uk(geometry) + w_uv(geometry)
    if form == "expanded":
        core = _reexpanding_attention(geometry)
        return (StageTerms(core.name, core.flops, core.bytes + Terms(fixed=kv_b)),)
    new = _projection("W_UK W_UV", kv_b, geometry.kv_lora_rank, geometry.expanded_width)
    return new, _expanded_attention(geometry)


def _latent_attention(geometry: MlaGeometry) -> StageTerms:
    per_pair = geometry.latent_width + geometry.kv_lora_rank
    heads = geometry.num_heads
    moved = Terms(per_key=geometry.latent_width, per_token=heads * per_pair)
    return StageTerms("latent attention", Terms(per_score=2 * heads * per_pair), moved)


def _expanded_attention(geometry: MlaGeometry) -> StageTerms:
    per_pair = geometry.qk_head_dim + geometry.v_head_dim
    moved = Terms(per_key=geometry.expanded_width, per_token=geometry.expanded_width)
    return StageTerms("attention", Terms(per_score=2 * geometry.num_heads * per_pair), moved)


def _reexpanding_attention(geometry: MlaGeometry) -> StageTerms:
    attention = _expanded_attention(geometry)
    expansion = Terms(per_key=2 * (w_uk(geometry) + w_uv(geometry)))
    # Expanded rows go out to memory once and come back once.
    moved = Terms(per_key=geometry.latent_width + geometry.expanded_width)
    return StageTerms("expand and attend", attention.flops + expansion, attention.bytes + moved)
