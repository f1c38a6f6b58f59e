"""What each form of a latent attention costs, from its dimensions alone.

Everything here is a pure function of the geometry, the element size, B, S, T and a description of
the machine. B sequences run S new tokens each against T keys (past + S); causal attention sees
``T - (S - 1) / 2`` of them on average. A stage takes ``max(FLOP / F, bytes / BW) + launch``; a form
is the sum of its stages. These are lower bounds, good for comparing forms, not forecasts.

| form | query side | attention over | output side |
|---|---|---|---|
| ``factored`` | W_UQ, then W_UK per head | latent rows | W_UV per head, then W_O |
| ``fold-q`` | W_UQ W_UK in one | latent rows | W_UV per head, then W_O |
| ``fold-o`` | W_UQ, then W_UK per head | latent rows | W_UV W_O in one |
| ``fold`` | W_UQ W_UK in one | latent rows | W_UV W_O in one |
| ``expanded`` | W_UQ | keys and values, expanded again from all T latent rows | W_O |
| ``expanded-cache`` | W_UQ | cached keys and values; only the S new rows are expanded | W_O |

A matrix whose size the graph does not tell (``hidden_size`` unknown) counts as nothing, in every
form alike; folding into it is then never chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mla_opt.geometry import MlaGeometry
from mla_opt.sites import CacheFamily, Form, PrefillForm

CostForm = Literal["factored", "fold-q", "fold-o", "fold", "expanded", "expanded-cache"]
AbsorbedForm = Literal["factored", "fold-q", "fold-o", "fold"]

COST_FORMS: tuple[CostForm, ...] = (
    "factored",
    "fold-q",
    "fold-o",
    "fold",
    "expanded",
    "expanded-cache",
)
#: Longest chunk of a prompt: by then weights are read once for enough tokens.
MAX_CHUNK = 2048
#: Lengths to choose from: a factor of about 1.4 apart.
_CHUNKS = tuple(sorted({n for e in range(12) for n in (2**e, 3 * 2**e // 2) if n <= MAX_CHUNK}))
#: Tensors of the scores' size that are alive at once where no kernel fuses them.
_SCORES_HELD = 3
#: Chunks whose times differ by less than this factor are taken to be equally fast.
_SAME_TIME = 1.05

_FOLDED: tuple[AbsorbedForm, ...] = ("fold-q", "fold-o", "fold")
_FOLDS_QUERY = ("fold-q", "fold")
_FOLDS_OUTPUT = ("fold-o", "fold")


@dataclass(frozen=True, slots=True)
class Hardware:
    """A machine as the cost model sees it.

    Attributes:
        name: what a person calls it.
        flops: floating-point operations per second, a multiplication and an addition being two.
        bandwidth: bytes per second from main memory.
        launch_seconds: fixed cost of one operator or kernel.
    """

    name: str
    flops: float
    bandwidth: float
    launch_seconds: float


# The CPU was measured: two AVX-512 (Zen 5) cores, fp32 FMA 521 GFLOP/s, reads 80 GB/s; the smallest
# MatMul node in ONNX Runtime 1.32 takes 0.28 microseconds. The GPUs are vendor sheets (dense bf16,
# HBM): H100 SXM 989 TFLOP/s and 3.35 TB/s, H200 the same compute and 4.8 TB/s; derated to what
# published kernels reach (790 TFLOP/s, 90% of the bandwidth). A launch outside a CUDA graph costs
# 2 to 4 microseconds.
HARDWARE: dict[str, Hardware] = {
    "cpu": Hardware("2-core AVX-512 CPU", 521e9, 80e9, 0.28e-6),
    "h100": Hardware("NVIDIA H100 SXM", 790e12, 3.0e12, 3e-6),
    "h200": Hardware("NVIDIA H200", 790e12, 4.3e12, 3e-6),
}
DEFAULT_HARDWARE = HARDWARE["cpu"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One call: ``batch`` sequences, ``query_len`` new tokens, ``total_len`` keys (past + new).

    Raises:
        ValueError: a number is not positive, or there are fewer keys than new tokens.
    """

    batch: int = 1
    query_len: int = 1
    total_len: int = 8192

    def __post_init__(self) -> None:
        if min(self.batch, self.query_len) < 1:
            raise ValueError(f"batch and query_len must be at least 1: {self}")
        if self.total_len < self.query_len:
            raise ValueError(f"total_len counts the new tokens too, so it is at least S: {self}")

    @property
    def tokens(self) -> int:
        """New tokens of all sequences, ``B S``."""
        return self.batch * self.query_len

    @property
    def keys(self) -> int:
        """Keys of all sequences, ``B T``."""
        return self.batch * self.total_len

    @property
    def scores(self) -> float:
        """Query-key pairs that a causal attention looks at, per head."""
        return self.tokens * (self.total_len - (self.query_len - 1) / 2)


DECODE = Workload()


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


@dataclass(frozen=True, slots=True)
class FormChoice:
    """The form to take for decoding, and one sentence that says why, with the figures."""

    form: Form
    reason: str


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """The form to take for long queries, the query length where it changes, and why.

    ``crossover`` is the number of new tokens above which expanding is cheaper, for a context
    without bound; ``None`` when absorbing is never dearer.
    """

    form: PrefillForm
    crossover: float | None
    reason: str


def weight_count(geometry: MlaGeometry, form: CostForm) -> int:
    """Return how many numbers the matrices from the query latent to the output hold.

    W_UQ, W_UK, W_UV and W_O, or their products; the down-projections are the same in every form.
    """
    return _query_weights(geometry, form) + _output_weights(geometry, form)


def weight_bytes(geometry: MlaGeometry, form: CostForm, dtype_bytes: int) -> int:
    """Return :func:`weight_count` in bytes, ``dtype_bytes`` a number."""
    return dtype_bytes * weight_count(geometry, form)


def cache_bytes_per_token(
    geometry: MlaGeometry, family: CacheFamily | Literal["expanded"], dtype_bytes: int
) -> int:
    """Return the bytes one token takes in the KV cache of one attention.

    ``H (N + R + V)`` numbers when keys and values are cached expanded, ``C + R`` when the latent
    is, none without a cache.
    """
    if family == "none":
        return 0
    width = geometry.latent_width if family == "latent" else geometry.expanded_width
    return dtype_bytes * width


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


def choose_prefill(
    geometry: MlaGeometry, *, total_len: int | None = None, always_short: bool = False
) -> PrefillChoice:
    """Choose the form for queries of any length.

    Args:
        geometry: the attention.
        total_len: the largest context, if one is known; without it the limit is used.
        always_short: true when the model takes one token a call, so no prefill exists.
    """
    limit = geometry.prefill_crossover if total_len is None else geometry.crossover_at(total_len)
    if limit == float("inf"):
        return PrefillChoice("absorbed", None, _never_dearer(geometry))
    if always_short:
        return PrefillChoice("absorbed", limit, "the model takes one token a call")
    reason = (
        f"expanding takes fewer operations from {round(limit)} new tokens on, "
        f"absorbing below: {_attention_ratio(geometry):.2f}x the operations per key"
    )
    return PrefillChoice("auto", limit, reason)


@dataclass(frozen=True, slots=True)
class Prefill:
    """How one attention takes a prompt in chunks.

    Attributes:
        geometry: the attention.
        dtype_bytes: bytes per number.
        expands_from: s, where chunks of more than ``s T / (T + s)`` tokens are expanded; ``None``
            where none is.
        fused: whether the absorbed form keeps no scores.
        logits_per_token: logits that a call makes for each of its tokens; 0 if for the last only.
    """

    geometry: MlaGeometry
    dtype_bytes: int
    expands_from: int | None = None
    fused: bool = False
    logits_per_token: int = 0

    def expands(self, query_len: int, total_len: int) -> bool:
        """Whether a call of S tokens that sees T keys takes the expanded form."""
        limit = self.expands_from
        return limit is not None and query_len * (total_len + limit) > limit * total_len

    def bytes(self, workload: Workload) -> int:
        """Return the most memory that one call takes beyond weights and caches, roughly.

        Queries, what the attention holds at once, and the logits; hidden states are small.
        """
        geometry, rows = self.geometry, workload.batch * workload.query_len
        pairs = geometry.num_heads * rows * workload.total_len
        numbers = rows * (self.logits_per_token + 2 * _query_numbers(geometry))
        if self.expands(workload.query_len, workload.total_len):
            # Joined keys and the parts they are joined from; values twice, as made and laid out.
            numbers += 2 * workload.keys * geometry.expanded_width + _SCORES_HELD * pairs
        elif not self.fused:
            numbers += _SCORES_HELD * pairs
        return self.dtype_bytes * numbers

    def seconds_per_token(self, workload: Workload, hardware: Hardware = DEFAULT_HARDWARE) -> float:
        """Return the time of the attention of one call, for each of its tokens."""
        form: CostForm = "factored"
        if self.expands(workload.query_len, workload.total_len):
            form = "expanded"
        stage = attention_stage(
            self.geometry, form, dtype_bytes=self.dtype_bytes, workload=workload
        )
        weights = 2 * workload.tokens * (_w_uk(self.geometry) + _w_uv(self.geometry))
        # The expanded form's stage holds its expansion; the absorbed one multiplies its queries.
        extra = 0.0 if form == "expanded" else weights / hardware.flops
        return (stage.seconds(hardware) + extra) / workload.tokens


def choose_chunk(prefill: Prefill, batch: int, past_len: int, new_len: int, budget: int) -> int:
    """Return how many of ``new_len`` tokens to run next: the fastest chunk within ``budget`` bytes.

    Of chunks that take the same time to a few percent, the largest, up to `MAX_CHUNK`; 1 where no
    more fits.

    Args:
        prefill: how the model takes a chunk.
        batch: sequences.
        past_len: tokens that the caches hold already.
        new_len: tokens that are to go in, at least 1.
        budget: bytes that a call may take beyond weights and caches.
    """
    sizes = {min(size, new_len) for size in _CHUNKS}
    workloads = [Workload(batch, size, past_len + size) for size in sorted(sizes)]
    fitting = [w for w in workloads if prefill.bytes(w) <= budget]
    if not fitting:
        return 1
    fastest = min(prefill.seconds_per_token(w) for w in fitting)
    good = [w for w in fitting if prefill.seconds_per_token(w) <= _SAME_TIME * fastest]
    return max(w.query_len for w in good)


def form_before(family: CacheFamily) -> CostForm:
    """Return the form of a model as exported, by what it caches."""
    return "expanded-cache" if family == "expanded" else "expanded"


# Weights: how many numbers.


def _query_width(geometry: MlaGeometry) -> int:
    return geometry.q_lora_rank or geometry.hidden_size or 0


def _query_weights(geometry: MlaGeometry, form: CostForm) -> int:
    per_head = geometry.latent_width if form in _FOLDS_QUERY else geometry.qk_head_dim
    up = _query_width(geometry) * geometry.num_heads * per_head
    return up if form in _FOLDS_QUERY else up + _w_uk(geometry)


def _output_weights(geometry: MlaGeometry, form: CostForm) -> int:
    per_head = geometry.kv_lora_rank if form in _FOLDS_OUTPUT else geometry.v_head_dim
    out = geometry.num_heads * per_head * (geometry.hidden_size or 0)
    return out if form in _FOLDS_OUTPUT else out + _w_uv(geometry)


def _query_numbers(geometry: MlaGeometry) -> int:
    """Numbers of one token's queries and outputs in the wider of both forms."""
    absorbed = geometry.latent_width + geometry.kv_lora_rank
    return geometry.num_heads * max(absorbed, geometry.qk_head_dim + geometry.v_head_dim)


def _w_uk(geometry: MlaGeometry) -> int:
    return geometry.num_heads * geometry.qk_nope_head_dim * geometry.kv_lora_rank


def _w_uv(geometry: MlaGeometry) -> int:
    return geometry.num_heads * geometry.v_head_dim * geometry.kv_lora_rank


# Stages. Here ``bytes`` counts numbers; ``_in_bytes`` turns them into bytes.


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
    heads, rows, width = geometry.num_heads, workload.tokens, _query_width(geometry)
    if form in _FOLDS_QUERY:
        out = heads * geometry.latent_width
        return (_projection("W_UQ W_UK", rows, width * out, width, out),)
    full = heads * geometry.qk_head_dim
    up = _projection("W_UQ", rows, width * full, width, full)
    narrow, wide = heads * geometry.qk_nope_head_dim, heads * geometry.kv_lora_rank
    return up, _projection("W_UK", rows, _w_uk(geometry), narrow, wide)


def _output_stages(geometry: MlaGeometry, form: CostForm, workload: Workload) -> tuple[Stage, ...]:
    rows, hidden = workload.tokens, geometry.hidden_size or 0
    wide = geometry.num_heads * geometry.kv_lora_rank
    if form in _FOLDS_OUTPUT:
        return (_projection("W_UV W_O", rows, wide * hidden, wide, hidden),)
    narrow = geometry.num_heads * geometry.v_head_dim
    down = _projection("W_UV", rows, _w_uv(geometry), wide, narrow)
    return down, _projection("W_O", rows, narrow * hidden, narrow, hidden)


def _expanded_stages(
    geometry: MlaGeometry, form: CostForm, workload: Workload
) -> tuple[Stage, ...]:
    rows, hidden = workload.tokens, geometry.hidden_size or 0
    width, full = _query_width(geometry), geometry.num_heads * geometry.qk_head_dim
    narrow = geometry.num_heads * geometry.v_head_dim
    query = _projection("W_UQ", rows, width * full, width, full)
    output = _projection("W_O", rows, narrow * hidden, narrow, hidden)
    return query, *_expanded_core(geometry, form, workload), output


def _expanded_core(geometry: MlaGeometry, form: CostForm, workload: Workload) -> tuple[Stage, ...]:
    kv_b = _w_uk(geometry) + _w_uv(geometry)
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
    expansion = 2 * workload.keys * (_w_uk(geometry) + _w_uv(geometry))
    # Expanded rows go out to memory once and come back once.
    moved = workload.keys * (geometry.latent_width + geometry.expanded_width)
    return Stage("expand and attend", attention.flops + expansion, attention.bytes + moved)


# Choosing.


def _foldable(geometry: MlaGeometry, form: AbsorbedForm, can_fold_output: bool) -> bool:
    query = form not in _FOLDS_QUERY or _query_width(geometry) > 0
    output = form not in _FOLDS_OUTPUT or (can_fold_output and geometry.hidden_size is not None)
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


def _never_dearer(geometry: MlaGeometry) -> str:
    return (
        "absorbing never takes more operations: 2C <= N + V "
        f"({2 * geometry.kv_lora_rank} <= {geometry.qk_nope_head_dim + geometry.v_head_dim})"
    )


def _attention_ratio(geometry: MlaGeometry) -> float:
    absorbed = geometry.latent_width + geometry.kv_lora_rank
    return absorbed / (geometry.qk_head_dim + geometry.v_head_dim)
