"""ONNX Runtime's ``com.microsoft::PagedAttention``, as far as latent attention needs it.

One node does for all sequences of a call what ``LatentAttention`` does for sequences of one length:

| operand | shape | |
|---|---|---|
| `query` | [T, H (C+R)] | absorbed queries of all new tokens, those of a sequence together |
| `key` | [T, C+R] | their latent rows, after norm and rotary embedding |
| `key_cache` | [blocks, block size, 1, C+R] | float16, bfloat16, int8 or float8e4m3fn |
| `cumulative_sequence_length` | [sequences + 1] int32 | where the tokens of each begin; then T |
| `past_seqlens` | [sequences] int32 | rows that each has in the cache before the call |
| `block_table` | [sequences, most blocks] int32 | blocks of each sequence in order; -1: none |
| `slot_mapping` | [T] int32 | where each row goes: block * block size + place; -1: nowhere |
| `k_scale` | [1, 1, C+R] float32 | of codes of 8 bits: a scale for each number of a row |
| → `output` | [T, H C] | |
| → `key_cache_out` | | the same memory as `key_cache` |

Token i of the new ones of a sequence sees the rows up to ``past_seqlens + i``, its own being the
last. Queries, rows and output are float16 or bfloat16, and C+R is a multiple of 8. A block has a
power of two of rows, 16 or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from mla_opt.errors import InputError

DOMAIN = "com.microsoft"
OP_TYPE = "PagedAttention"

INPUTS = (
    "query",
    "key",
    "value",
    "key_cache",
    "value_cache",
    "cumulative_sequence_length",
    "past_seqlens",
    "block_table",
    "cos_cache",
    "sin_cache",
    "slot_mapping",
    "head_sink",
    "q_norm_weight",
    "k_norm_weight",
    "k_scale",
)
"""The operator's inputs in their order, up to the last that latent attention has."""

CALL = ("cumulative_sequence_length", "past_seqlens", "block_table", "slot_mapping")
"""The inputs that say which tokens of a call are whose, and where their rows are; int32."""

CALL_SHAPES: Mapping[str, tuple[str, ...]] = {
    "cumulative_sequence_length": ("num_sequences + 1",),
    "past_seqlens": ("num_sequences",),
    "block_table": ("num_sequences", "max_blocks_per_sequence"),
    "slot_mapping": ("num_tokens",),
}

NUM_TOKENS, NUM_BLOCKS, BLOCK_SIZE = "num_tokens", "num_blocks", "block_size"
"""How a model declares T, and the sizes of its caches."""

TYPES = ("float16", "bfloat16")
CODES = ("int8", "float8_e4m3fn")
"""Element types of queries and rows, and of codes that rows may be kept in."""

MULTIPLE_OF = 8
LEAST_BLOCK = 16

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class PagedSignature:
    """What one node is: the operator's attributes that are not the same for all models.

    ``quantized`` says that the cache holds codes, with a scale for each number of a row.
    """

    num_heads: int
    kv_lora_rank: int
    scale: float
    quantized: bool = False

    def attributes(self) -> dict[str, int | float | str]:
        """The attributes whose defaults are not those of latent attention.

        No others, as releases differ in what they know. ``scale`` has no default that is right:
        it would be one over the root of C+R.
        """
        given: dict[str, int | float | str] = {
            "num_heads": self.num_heads,
            "kv_num_heads": 1,
            "v_head_size": self.kv_lora_rank,
            "kv_cache_layout": "LATENT",
            "scale": float(self.scale),
        }
        return {**given, "k_quant_type": "PER_CHANNEL"} if self.quantized else given

    def arrange(self, operands: Mapping[str, _Value]) -> list[_Value | None]:
        """The operands of a node, in their slots up to the last.

        Raises:
            InputError: one is missing, or one too many.
        """
        wanted = {"query", "key", "key_cache", *CALL} | ({"k_scale"} if self.quantized else set())
        if set(operands) != wanted:
            raise InputError(
                f"{OP_TYPE} takes {', '.join(sorted(wanted))}; it was given"
                f" {', '.join(sorted(operands)) or 'nothing'}"
            )
        last = max(INPUTS.index(name) for name in operands)
        return [operands.get(name) for name in INPUTS[: last + 1]]
