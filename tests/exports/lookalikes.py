"""A latent attention block in plain PyTorch, and near misses of it: each differs in one method.

    hidden ─ q_proj ─────────────────────── q_nope, rope(q_pe) ─┐
    hidden ─ kv_a_proj ┬ norm ─ latent ─ kv_b ─ k_nope, value   ├─ softmax(q·k) value ─ o_proj
                       └ rope(k_pe), one row for all heads ─────┘

Each is exported with hidden states [B,S,E] and an additive mask [B,1,S,S].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, NOPE, ROPE, VALUE, LATENT = 84, 3, 24, 8, 20, 48
EXPANDED = HEADS * (NOPE + VALUE)


class LatentBlock(nn.Module):
    """The real thing, without a cache: the positive control."""

    latent_width = LATENT
    kv_b_width = EXPANDED
    key_rope_width = ROPE

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * (NOPE + ROPE), bias=False)
        self.kv_a_proj = nn.Linear(HIDDEN, self.latent_width + self.key_rope_width, bias=False)
        self.kv_a_norm = nn.RMSNorm(self.latent_width, eps=1e-6)
        self.kv_b_proj = nn.Linear(self.latent_width, self.kv_b_width, bias=False)
        self.o_proj = nn.Linear(HEADS * VALUE, HIDDEN, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Attention over the tokens of this call."""
        latent, key_rope = self.kv_a_proj(hidden).split(
            [self.latent_width, self.key_rope_width], dim=-1
        )
        key_nope, value = self.expand(self.kv_a_norm(latent), hidden)
        key = torch.cat([key_nope, self.rotated_key(key_rope)], dim=-1)
        query = torch.cat(self.queries(hidden, latent), dim=-1)
        return self.o_proj(attend(query, key, value, mask))

    def queries(self, hidden: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Per head [B,H,S,·]: the part without and the part with rotary embedding."""
        nope, rope = to_heads(self.q_proj(hidden)).split([NOPE, ROPE], dim=-1)
        return nope, rotate(rope)

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Per head: keys without rotary embedding, and values."""
        key, value = to_heads(self.kv_b_proj(latent)).split([NOPE, VALUE], dim=-1)
        return key, value

    def rotated_key(self, key_rope: Tensor) -> Tensor:
        """The rotary part of the keys: one row, seen by every head."""
        return rotate(key_rope.unsqueeze(1)).expand(-1, HEADS, -1, -1)


def to_heads(flat: Tensor) -> Tensor:
    """[B,S,H·D] -> [B,H,S,D]."""
    return flat.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def rotate(rows: Tensor) -> Tensor:
    """Rotary embedding on halves, by position in the sequence."""
    frequencies = 10000.0 ** (-torch.arange(0, ROPE, 2, dtype=torch.float32) / ROPE)
    angles = torch.arange(rows.shape[-2])[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    first, second = rows.chunk(2, dim=-1)
    return rows * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention with an additive mask, heads flattened at the end."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(NOPE + ROPE)
    return ((scores + mask).softmax(-1) @ value).transpose(1, 2).flatten(2)


class QueryFromLatentProjection(LatentBlock):
    """The query's nope part comes out of kv_b as well, as in a fused QKV projection."""

    kv_b_width = EXPANDED + HEADS * NOPE

    def queries(self, hidden: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        _, rope = super().queries(hidden, latent)
        fused = to_heads(self.kv_b_proj(self.kv_a_norm(latent)))
        return fused[..., NOPE + VALUE :], rope

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value, _ = to_heads(self.kv_b_proj(latent)).split([NOPE, VALUE, NOPE], dim=-1)
        return key, value


class SeparateKeyValueLinears(LatentBlock):
    """Keys and values come from the latent through two linears, not one."""

    kv_b_width = HEADS * NOPE

    def __init__(self) -> None:
        super().__init__()
        self.value_proj = nn.Linear(LATENT, HEADS * VALUE, bias=False)

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return to_heads(self.kv_b_proj(latent)), to_heads(self.value_proj(latent))


class SeparateLatents(SeparateKeyValueLinears):
    """Keys come from the latent, values from another latent of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.value_latent = nn.Linear(HIDDEN, LATENT, bias=False)

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return to_heads(self.kv_b_proj(latent)), to_heads(
            self.value_proj(self.value_latent(hidden))
        )


class RopePerHead(LatentBlock):
    """Every head has its own rotary key, so there is no row that all heads share."""

    key_rope_width = HEADS * ROPE

    def rotated_key(self, key_rope: Tensor) -> Tensor:
        return rotate(to_heads(key_rope))


class WideLatent(LatentBlock):
    """The latent is wider than the keys and values made of it: caching it would cost more."""

    latent_width = EXPANDED + 12


class SquareLatent(LatentBlock):
    """The latent is exactly as wide as what is made of it: nothing to gain."""

    latent_width = EXPANDED


class DynamicProjection(LatentBlock):
    """kv_b's weight is computed from the input, so there is no constant to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_gate = nn.Linear(HIDDEN, LATENT, bias=False)

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.weight_gate(hidden.mean(dim=(0, 1))).sigmoid()
        weight = self.kv_b_proj.weight.t() * gate[:, None]
        key, value = to_heads(latent @ weight).split([NOPE, VALUE], dim=-1)
        return key, value


class NonlinearValues(LatentBlock):
    """A SiLU between kv_b and attention, on the values only."""

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().expand(latent, hidden)
        return key, functional.silu(value)


class NonlinearKeys(LatentBlock):
    """A norm over each head's key between kv_b and attention (query-key normalisation)."""

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().expand(latent, hidden)
        return functional.normalize(key, dim=-1), value


class TokenMixing(LatentBlock):
    """Keys are summed over the tokens so far between kv_b and attention: not token-wise."""

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().expand(latent, hidden)
        return key.cumsum(dim=-2), value


class TokenReversal(LatentBlock):
    """Keys are taken from the mirrored position: linear, but not token-wise."""

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().expand(latent, hidden)
        return key.flip(-2), value


class DataDependentScale(LatentBlock):
    """kv_b's output is scaled by a gate of the hidden state, not of the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.token_gate = nn.Linear(HIDDEN, 1, bias=False)

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gated = self.kv_b_proj(latent) * self.token_gate(hidden).sigmoid()
        key, value = to_heads(gated).split([NOPE, VALUE], dim=-1)
        return key, value


class HeadMixing(LatentBlock):
    """A head's keys go through a softmax over the heads: not linear, though the shape is right."""

    def expand(self, latent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().expand(latent, hidden)
        return key.softmax(dim=1), value
