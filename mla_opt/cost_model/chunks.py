"""How many tokens of a prompt to run at once."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.cost_model.forms import CostForm
from mla_opt.cost_model.hardware import DEFAULT_HARDWARE, Hardware
from mla_opt.cost_model.stages import attention_stage
from mla_opt.cost_model.weights import w_uk, w_uv
from mla_opt.cost_model.workload import Workload
from mla_opt.geometry import MlaGeometry

#: Longest chunk of a prompt: by then weights are read once for enough tokens, and more tokens only
#: take more memory.
MAX_CHUNK = 1024
#: Lengths to choose from: a factor of about 1.4 apart.
_CHUNKS = tuple(sorted({n for e in range(12) for n in (2**e, 3 * 2**e // 2) if n <= MAX_CHUNK}))
#: Tensors of the scores' size that are alive at once where no kernel fuses them.
_SCORES_HELD = 3
#: Bytes that the mask takes while a model makes it, for each query and key, whatever the heads: 19
#: were measured with exports of transformers 5.23, which compare, join, and turn it into floats.
_MASK_BYTES = 20
#: Bytes of keys and values that the kernel which expands by itself keeps at a time, some heads of
#: one sequence; more only where those of one head are more.
_EXPANDED_HELD = 64 << 20
#: Chunks whose times differ by less than this factor are taken to be equally fast.
_SAME_TIME = 1.05


@dataclass(frozen=True, slots=True)
class Prefill:
    """How one attention takes a prompt in chunks.

    Attributes:
        geometry: the attention.
        dtype_bytes: bytes per number.
        expands_from: s, where chunks of more than ``s T / (T + s)`` tokens are expanded; ``None``
            where none is.
        fused: whether the absorbed form keeps no scores.
        held: whether the expanded form keeps none either, and few keys and values at a time.
        logits_per_token: logits that a call makes for each of its tokens; 0 if for the last only.
    """

    geometry: MlaGeometry
    dtype_bytes: int
    expands_from: int | None = None
    fused: bool = False
    held: bool = False
    logits_per_token: int = 0

    def expands(self, query_len: int, total_len: int) -> bool:
        """Whether a call of S tokens that sees T keys takes the expanded form."""
        limit = self.expands_from
        return limit is not None and query_len * (total_len + limit) > limit * total_len

    def bytes(self, workload: Workload) -> int:
        """Return the most memory that one call takes beyond weights and caches, roughly.

        Queries, what the attention holds at once, the mask and the logits; hidden states are
        small.
        """
        geometry, rows = self.geometry, workload.batch * workload.query_len
        pairs = geometry.num_heads * rows * workload.total_len
        numbers = rows * (self.logits_per_token + 2 * _query_numbers(geometry))
        expands, kept = self.expands(workload.query_len, workload.total_len), 0
        if expands and self.held:
            head = self.dtype_bytes * workload.total_len * geometry.head_width
            kept = max(head, min(head * geometry.num_heads, _EXPANDED_HELD))
        elif expands:
            # Joined keys and the parts they are joined from; values twice, as made and laid out.
            numbers += 2 * workload.keys * geometry.expanded_width + _SCORES_HELD * pairs
        elif not self.fused:
            numbers += _SCORES_HELD * pairs
        return self.dtype_bytes * numbers + kept + _MASK_BYTES * rows * workload.total_len

    def seconds_per_token(self, workload: Workload, hardware: Hardware = DEFAULT_HARDWARE) -> float:
        """Return the time of the attention of one call, for each of its tokens."""
        form: CostForm = "factored"
        if self.expands(workload.query_len, workload.total_len):
            form = "expanded"
        stage = attention_stage(
            self.geometry, form, dtype_bytes=self.dtype_bytes, workload=workload
        )
        weights = 2 * workload.tokens * (w_uk(self.geometry) + w_uv(self.geometry))
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


def _query_numbers(geometry: MlaGeometry) -> int:
    """Numbers of one token's queries and outputs in the wider of both forms."""
    absorbed = geometry.latent_width + geometry.kv_lora_rank
    return geometry.num_heads * max(absorbed, geometry.qk_head_dim + geometry.v_head_dim)
