"""The dimensions of one latent attention, in the symbols the whole project uses.

| symbol | field | meaning |
|---|---|---|
| H | ``num_heads`` | query heads |
| N | ``qk_nope_head_dim`` | query and key dims per head without rotary embedding |
| R | ``qk_rope_head_dim`` | query and key dims per head with rotary embedding; may be 0 |
| V | ``v_head_dim`` | value dims per head |
| C | ``kv_lora_rank`` | width of the latent ``c_kv`` |
| Q | ``q_lora_rank`` | width of the query latent; ``None`` when there is none |
| E | ``hidden_size`` | width of the hidden state; ``None`` when the graph does not say |

B, S, T and P stand for batch, query length, total length (keys seen) and past length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class MlaGeometry:
    """Dimensions of one latent attention, read off the graph and never off names or a config."""

    num_heads: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    kv_lora_rank: int
    q_lora_rank: int | None = None
    hidden_size: int | None = None

    @property
    def latent_width(self) -> int:
        """Width of a latent row, ``C + R``: what the cache holds per token."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Width of an expanded key, ``N + R``."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def head_width(self) -> int:
        """Numbers per token of a head's key and value, ``N + R + V``."""
        return self.qk_head_dim + self.v_head_dim

    @property
    def expanded_width(self) -> int:
        """Numbers per token of an expanded cache, ``H (N + R + V)``."""
        return self.num_heads * self.head_width

    @property
    def prefill_crossover(self) -> float:
        """Query length above which expanding beats absorbing as T grows without bound.

        ``C (N + V) / (2 C - N - V)``; infinite when absorbing is never dearer. From counting
        the multiplications of both forms; H and B cancel.
        """
        excess = 2 * self.kv_lora_rank - self.qk_nope_head_dim - self.v_head_dim
        if excess <= 0:
            return float("inf")
        return self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim) / excess

    def crossover_at(self, total_len: int) -> float:
        """Query length above which expanding beats absorbing with ``total_len`` keys in sight."""
        limit = self.prefill_crossover
        if limit == float("inf"):
            return limit
        return limit * total_len / (total_len + limit)

    def as_dict(self) -> dict[str, int | None]:
        """Return the fields as plain numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lora = "-" if self.q_lora_rank is None else str(self.q_lora_rank)
        return (
            f"H={self.num_heads} N={self.qk_nope_head_dim} R={self.qk_rope_head_dim} "
            f"V={self.v_head_dim} C={self.kv_lora_rank} Q={lora} E={self.hidden_size or '-'}"
        )
