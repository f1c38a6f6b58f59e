"""The dimensions of the models that are measured."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Dims:
    """One DeepSeek-V3 style decoder with dense MLPs, in the symbols of `mla_opt.geometry`."""

    layers: int = 2
    hidden_size: int = 2048
    num_heads: int = 16
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    mlp: int = 1024
    vocab: int = 4096

    @property
    def qk_head_dim(self) -> int:
        """Width of one expanded key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Numbers of one latent row."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        return float(self.qk_head_dim**-0.5)

    def prompt_operations(self, new: int, past: int) -> float:
        """Operations of all products of `new` tokens on `past`, but for those of the vocabulary.

        With keys and values expanded once, and nothing above the diagonal.
        """
        made = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        expansion = self.layers * self.kv_lora_rank * made
        linear = self.step_weights - self.hidden_size * self.vocab - expansion
        pairs = new * past + new * (new + 1) / 2
        attention = self.layers * self.num_heads * (self.qk_head_dim + self.v_head_dim) * pairs
        return 2.0 * (new * linear + (new + past) * expansion + attention)

    @property
    def step_weights(self) -> int:
        """Stored numbers that one token needs: all but the embeddings of the others."""
        e, heads, q = self.hidden_size, self.num_heads, self.q_lora_rank
        latent = self.kv_lora_rank
        query = heads * self.qk_head_dim * (q or e) + (e * q if q else 0)
        rows = e * (latent + self.qk_rope_head_dim)
        expansion = latent * heads * (self.qk_nope_head_dim + self.v_head_dim)
        output = heads * self.v_head_dim * e
        return self.layers * (query + rows + expansion + output + 3 * e * self.mlp) + e * self.vocab

    def to_json(self) -> str:
        """The dimensions as one line, for the command line of a subprocess."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Dims:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


#: Two layers of DeepSeek-V2-Lite dimensions: the model of every figure that names no other.
LITE = Dims()

#: One layer of DeepSeek-V3.
V3 = Dims(layers=1, hidden_size=7168, num_heads=128, q_lora_rank=1536, mlp=1024, vocab=512)

#: Stand-ins for `--quick`: the same graphs, small enough for seconds.
TINY = Dims(2, 64, 4, 16, 8, 16, 32, None, 32, 64)
TINY_V3 = Dims(1, 96, 8, 16, 8, 16, 32, 48, 32, 64)


def scaling(layers: int) -> Dims:
    """DeepSeek-V2-Lite's attention in many layers, with little else in them."""
    return dataclasses.replace(LITE, layers=layers, mlp=64, vocab=256)


def tiny_scaling(layers: int) -> Dims:
    """`scaling` for `--quick`."""
    return dataclasses.replace(TINY, layers=layers)
