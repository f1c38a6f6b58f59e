"""Where a latent attention finds its rows: in the graph, or in a cache that it appends to."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


@dataclass(frozen=True, slots=True)
class Rows:
    """Latent rows, split into ``c_kv`` and ``k_pe``, cut into halves, or packed into one tensor.

    Each field has two values (split, halves), one (packed, or R = 0), or none. ``new`` are rows
    that this call adds, ``past`` rows that were there before it. Without ``new``, every row is in
    ``past``. ``narrow`` says that the past rows have fewer bits than the new ones. ``half`` is how
    many numbers each tensor of the past has of a row, where it holds halves.
    """

    new: tuple[Value, ...]
    past: tuple[Value, ...] = ()
    past_len: Value | None = None
    narrow: bool = False
    half: int | None = None

    def packed_new(self, builder: Builder) -> Value | None:
        """The new rows ``[B, 1, S, C + R]``."""
        if len(self.new) < 2:
            return self.new[0] if self.new else None
        return builder.concat(self.new, 3, "latent")

    def is_even(self, kv_lora_rank: int) -> bool:
        """Whether the past is in halves, and these are not ``c_kv`` and ``k_pe``."""
        return self.half is not None and self.half != kv_lora_rank

    def fused_operands(self, builder: Builder) -> dict[str, Value]:
        """The operands of the fused operator that say where the rows are."""
        given: dict[str, Value | None] = {
            "latent": self.packed_new(builder),
            "cache": self.past[0] if self.past else None,
            "past_len": self.past_len,
            "rope_cache": self.past[1] if len(self.past) == 2 else None,
        }
        return {name: value for name, value in given.items() if value is not None}
