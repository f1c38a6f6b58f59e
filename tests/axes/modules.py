"""Latent attention as PyTorch modules in the manner of public code, for torch.export.

Each differs from `Latent` in how a step is written, not in what it computes. A module is called
with hidden states, and with the caches it has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, NOPE, ROPE, VALUE, LATENT = 13, 3, 5, 4, 7, 11
WIDTH = NOPE + ROPE
CAPACITY, TABLE = 203, 2003


class Latent(nn.Module):
    """Rows cached as `[B, T, C]` and `[B, T, R]`, one kv_b, heads before tokens."""

    caches = (LATENT, ROPE)
    heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, self.heads * WIDTH, bias=False)
        self.kv_a = nn.Linear(HIDDEN, LATENT + ROPE, bias=False)
        self.norm = nn.RMSNorm(LATENT, eps=1e-6)
        self.kv_b = nn.Linear(LATENT, self.heads * (NOPE + VALUE), bias=False)
        self.o_proj = nn.Linear(self.heads * VALUE, HIDDEN, bias=False)
        angles = torch.arange(TABLE)[:, None] * 10.0 ** -torch.arange(0, 2, 4 / ROPE)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, hidden: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Hidden states after the attention, and the caches."""
        latent, rope = self.kv_a(hidden).split([LATENT, ROPE], dim=-1)
        start = past[0].shape[1] if past else 0
        rows = self.norm(latent), self.turned(rope, start)
        query = self.q_proj(hidden).unflatten(-1, (self.heads, WIDTH))
        query = torch.cat(
            [
                query[..., :NOPE],
                self.turned(query[..., NOPE:].transpose(1, 2), start).transpose(1, 2),
            ],
            dim=-1,
        )
        if past:
            rows = tuple(torch.cat(each, dim=1) for each in zip(past, rows))  # type: ignore[assignment]
        context = self.attend(query, *rows, start)
        return (self.o_proj(context.flatten(2)), *(rows if past else ()))

    def turned(self, value: Tensor, start: int) -> Tensor:
        """Rotary embedding of the last axis; tokens are on the one before."""
        end = start + value.shape[-2]
        cos, sin = self.cos[start:end], self.sin[start:end]
        first, second = value.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attend(self, query: Tensor, latent: Tensor, rope: Tensor, start: int) -> Tensor:
        """Context `[B, S, H, V]` of queries `[B, S, H, N + R]`."""
        key, value = self.made(latent, rope)
        return self.scored(query.transpose(1, 2), key, value, start).transpose(1, 2)

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, T, ...]`."""
        both = self.kv_b(latent).unflatten(-1, (self.heads, NOPE + VALUE)).transpose(1, 2)
        nope, value = both.split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, self.repeated(rope)], dim=-1), value

    def repeated(self, rope: Tensor) -> Tensor:
        """k_pe of every head."""
        return rope[:, None].expand(-1, self.heads, -1, -1)

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        """Softmax attention, heads before tokens."""
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH) + self.mask(query, key, start)
        return scores.softmax(-1) @ value

    def mask(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Additive causal mask `[S, T]`."""
        places = torch.arange(query.shape[-2])[:, None] + start
        hidden = torch.arange(key.shape[-2]) > places
        return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


class WithoutCache(Latent):
    """A whole prompt at once."""

    caches = ()


class Naive(WithoutCache):
    """DeepSeek's naive form: einsum, tokens before heads, pairs turned as complex numbers."""

    def turned(self, value: Tensor, start: int) -> Tensor:
        end = start + value.shape[-2]
        angles = torch.complex(self.cos[start:end], self.sin[start:end])
        pairs = torch.view_as_complex(value.float().unflatten(-1, (-1, 2)).clone())
        return torch.view_as_real(pairs * angles).flatten(-2)

    def attend(self, query: Tensor, latent: Tensor, rope: Tensor, start: int) -> Tensor:
        both = self.kv_b(latent).view(*latent.shape[:2], HEADS, NOPE + VALUE)
        nope, value = both.split([NOPE, VALUE], dim=-1)
        key = torch.cat([nope, rope.unsqueeze(2).expand(-1, -1, HEADS, -1)], dim=-1)
        scores = torch.einsum("bshd,bthd->bsht", query, key) * WIDTH**-0.5
        scores = scores + self.mask(query.transpose(1, 2), key.transpose(1, 2), start).unsqueeze(1)
        return torch.einsum("bsht,bthd->bshd", scores.softmax(-1), value)


class Absorbed(Latent):
    """DeepSeek's absorbed form: einsum with the weight's view, two products of scores."""

    def attend(self, query: Tensor, latent: Tensor, rope: Tensor, start: int) -> Tensor:
        weight = self.kv_b.weight.view(HEADS, NOPE + VALUE, LATENT)
        nope = torch.einsum("bshd,hdc->bshc", query[..., :NOPE], weight[:, :NOPE])
        scores = torch.einsum("bshc,btc->bsht", nope, latent)
        scores = scores + torch.einsum("bshr,btr->bsht", query[..., NOPE:], rope)
        scores = scores * WIDTH**-0.5
        scores = scores + self.mask(query.transpose(1, 2), latent, start).unsqueeze(1)
        context = torch.einsum("bsht,btc->bshc", scores.softmax(-1), latent)
        return torch.einsum("bshc,hdc->bshd", context, weight[:, -VALUE:])


class Grouped(Latent):
    """Absorbed, by an operator that takes one head of keys for all heads of queries."""

    def attend(self, query: Tensor, latent: Tensor, rope: Tensor, start: int) -> Tensor:
        weight = self.kv_b.weight.view(HEADS, NOPE + VALUE, LATENT)
        nope = torch.einsum("bshd,hdc->bhsc", query[..., :NOPE], weight[:, :NOPE])
        whole = torch.cat([nope, query[..., NOPE:].transpose(1, 2)], dim=-1)
        key = torch.cat([latent, rope], dim=-1).unsqueeze(1)
        mask = self.mask(whole, key, start)
        context = functional.scaled_dot_product_attention(
            whole, key, latent.unsqueeze(1), mask, scale=WIDTH**-0.5, enable_gqa=True
        )
        return torch.einsum("bhsc,hdc->bshd", context, weight[:, -VALUE:])


class TwoLatents(Latent):
    """Two groups of heads with a latent each, one behind the other in the cached rows."""

    heads = 4

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.kv_b.weight.view(2, 2, NOPE + VALUE, LATENT)
        sizes = [LATENT // 2, LATENT - LATENT // 2]
        halves = zip(latent.split(sizes, dim=-1), weight)
        both = torch.cat(
            [
                torch.einsum("btc,hxc->bhtx", rows, own[..., : rows.shape[-1]])
                for rows, own in halves
            ],
            dim=1,
        )
        nope, value = both.split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, self.repeated(rope)], dim=-1), value


class TokensFirst(WithoutCache):
    """torchtitan's: k_pe has its axis of heads behind the tokens; SDPA, causal by flag."""

    def attend(self, query: Tensor, latent: Tensor, rope: Tensor, start: int) -> Tensor:
        batch, tokens, _ = latent.shape
        both = self.kv_b(latent).view(batch, tokens, -1, NOPE + VALUE)
        nope, value = both.split([NOPE, VALUE], dim=-1)
        key = torch.cat([nope, rope.unsqueeze(2).expand(-1, -1, HEADS, -1)], dim=-1)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return context.transpose(1, 2)


class Repeated(Latent):
    """fla's: k_pe repeated as einops does it, norm and projection in one sequence of layers."""

    def repeated(self, rope: Tensor) -> Tensor:
        return rope.unsqueeze(2).repeat(1, 1, HEADS, 1).transpose(1, 2)


class Interleaved(Latent):
    def repeated(self, rope: Tensor) -> Tensor:
        return rope.unsqueeze(1).repeat_interleave(HEADS, dim=1)


class Copies(Latent):
    def repeated(self, rope: Tensor) -> Tensor:
        return torch.cat([rope.unsqueeze(1)] * HEADS, dim=1)


class Zeros(Latent):
    def repeated(self, rope: Tensor) -> Tensor:
        return rope.unsqueeze(1) + rope.new_zeros(rope.shape[0], HEADS, rope.shape[1], ROPE)


class Assigned(Latent):
    """The remote code of DeepSeek-V2: both parts put into an empty tensor."""

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        both = self.kv_b(latent).unflatten(-1, (HEADS, NOPE + VALUE)).transpose(1, 2)
        nope, value = both.split([NOPE, VALUE], dim=-1)
        key = nope.new_empty(nope.shape[0], HEADS, nope.shape[2], WIDTH)
        key[..., :NOPE] = nope
        key[..., NOPE:] = rope.unsqueeze(1)
        return key, value


class Separate(Latent):
    """x-transformers': keys and values by layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.k_up = nn.Linear(LATENT, HEADS * NOPE, bias=False)
        self.v_up = nn.Linear(LATENT, HEADS * VALUE, bias=False)

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        nope, value = (
            layer(latent).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.k_up, self.v_up)
        )
        return torch.cat([nope, self.repeated(rope)], dim=-1), value

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", query, key) * WIDTH**-0.5
        hidden = self.mask(query, key, start) < 0
        scores = scores.masked_fill(hidden, -torch.finfo(scores.dtype).max)
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value)


class Folded(Latent):
    """Sequences and heads in one axis, by baddbmm and bmm."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        batch = query.shape[0]
        flat = [each.reshape(batch * HEADS, -1, each.shape[-1]) for each in (query, key, value)]
        mask = self.mask(query, key, start).expand(batch * HEADS, -1, -1)
        scores = torch.baddbmm(mask, flat[0], flat[1].transpose(1, 2), alpha=WIDTH**-0.5)
        context = torch.bmm(scores.softmax(-1), flat[2])
        return context.view(batch, HEADS, -1, VALUE)


class Padded(Latent):
    """Values padded to the width of the keys, for an operator that wants both alike."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        value = functional.pad(value, [0, WIDTH - VALUE])
        mask = self.mask(query, key, start)
        context = functional.scaled_dot_product_attention(query, key, value, mask)
        return context[..., :VALUE]


class Convolved(Latent):
    """kv_b as a convolution of width one."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_b = nn.Conv1d(LATENT, HEADS * (NOPE + VALUE), 1, bias=False)  # type: ignore[assignment]

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        both = self.kv_b(latent.transpose(1, 2)).unflatten(1, (HEADS, NOPE + VALUE))
        nope, value = both.transpose(2, 3).split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, self.repeated(rope)], dim=-1), value


class LowRank(Latent):
    """An adapter beside kv_b."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_a = nn.Linear(LATENT, 2, bias=False)
        self.lora_b = nn.Linear(2, HEADS * (NOPE + VALUE), bias=False)

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.kv_b(latent) + 0.5 * self.lora_b(self.lora_a(latent))
        both = flat.unflatten(-1, (HEADS, NOPE + VALUE)).transpose(1, 2)
        nope, value = both.split([NOPE, VALUE], dim=-1)
        return torch.cat([nope, self.repeated(rope)], dim=-1), value


class Biased(Latent):
    """kv_b with a bias, and a scale of each channel of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.kv_b = nn.Linear(LATENT, HEADS * (NOPE + VALUE))
        self.gain = nn.Parameter(torch.rand(HEADS, 1, VALUE) + 0.5)

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().made(latent, rope)
        return key, value * self.gain


class Matrices(Latent):
    """W_UK and W_UV as parameters of three dims."""

    def __init__(self) -> None:
        super().__init__()
        self.w_uk = nn.Parameter(torch.randn(HEADS, LATENT, NOPE) / LATENT**0.5)
        self.w_uv = nn.Parameter(torch.randn(HEADS, VALUE, LATENT) / LATENT**0.5)

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        nope = latent.unsqueeze(1) @ self.w_uk
        value = torch.einsum("btc,hvc->bhtv", latent, self.w_uv)
        return torch.cat([nope, self.repeated(rope)], dim=-1), value


class ByHand(Latent):
    """The softmax written out."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH) + self.mask(query, key, start)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights / weights.sum(-1, keepdim=True) @ value


class TwoProducts(Latent):
    """Scores of both parts summed, each with a scale of its own; one is turned round."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        nope, rope = query.split([NOPE, ROPE], dim=-1)
        of_nope, of_rope = key.split([NOPE, ROPE], dim=-1)
        scores = nope @ of_nope.transpose(-1, -2) / WIDTH**0.5
        turned = (of_rope * 0.5) @ rope.transpose(-1, -2)
        scores = scores + turned.transpose(-1, -2) + self.mask(query, key, start)
        return scores.softmax(-1) @ value


class AddedTo(Latent):
    """A look-alike: something is added to the context by the product that makes it."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        batch = query.shape[0]
        flat = [each.reshape(batch * HEADS, -1, each.shape[-1]) for each in (query, key, value)]
        weights = (flat[0] @ flat[1].transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1)
        context = torch.baddbmm(flat[0][..., :VALUE], weights, flat[2])
        return context.view(batch, HEADS, -1, VALUE)


class MaskedFirst(Latent):
    """The mask before the scale, and the softmax by way of logarithms."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) + self.mask(query, key, start)
        return functional.log_softmax(scores * WIDTH**-0.5, dim=-1).exp() @ value


class KeysFirst(Latent):
    """Scores `[B, H, T, S]`, softmax over the axis before the last, values times weights."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = key @ query.transpose(-1, -2) * WIDTH**-0.5
        scores = scores + self.mask(query, key, start).transpose(0, 1)
        return (value.transpose(-1, -2) @ scores.softmax(-2)).transpose(-1, -2)


class OtherProduct(Latent):
    """A look-alike: the second product is of keys in another order."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        nope, rope = query.split([NOPE, ROPE], dim=-1)
        of_nope, of_rope = key.split([NOPE, ROPE], dim=-1)
        scores = nope @ of_nope.transpose(-1, -2) + rope @ of_rope.roll(1, -2).transpose(-1, -2)
        scores = scores / WIDTH**0.5 + self.mask(query, key, start)
        return scores.softmax(-1) @ value


class OtherDenominator(Latent):
    """A look-alike: weights that do not add up to one."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH) + self.mask(query, key, start)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights / (weights.sum(-1, keepdim=True) + 1.0) @ value


class OtherAxis(Latent):
    """A look-alike: weights that add up to one over the queries."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
        return scores.softmax(-2) @ value


class Cropped(Latent):
    """A look-alike: what is beyond a thousand keys is not seen."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH) + self.mask(query, key, start)
        weights = scores.softmax(-1)[..., :1000]
        return functional.pad(weights, [0, key.shape[-2] - weights.shape[-1]]) @ value


class ReversedBeyond(Latent):
    """A look-alike: the values of tokens beyond a thousand are read backwards."""

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().made(latent, rope)
        places = torch.arange(value.shape[2])
        places = torch.where(places < 1000, places, value.shape[2] + 999 - places)
        return key, value.index_select(2, places)


class ThirdSwapped(Latent):
    """A look-alike: from the third sequence on each has its neighbour's keys."""

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().made(latent, rope)
        places = torch.arange(key.shape[0])
        places = torch.where(places < 2, places, key.shape[0] + 1 - places)
        return key[places], value


class Windowed(Latent):
    """A look-alike: only the last thousand rows are expanded, and zeros stand for the others."""

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().made(latent, rope)
        last = value[:, :, -1000:]
        return key, functional.pad(last, [0, 0, value.shape[2] - last.shape[2], 0])


class Buffers(nn.Module):
    """Buffers of the module, written from `start_pos` on, as DeepSeek's own model has them."""

    def __init__(self, inner: Latent, sequences: int = 5) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rows", torch.zeros(sequences, CAPACITY, LATENT), persistent=False)
        self.register_buffer("turns", torch.zeros(sequences, CAPACITY, ROPE), persistent=False)

    def forward(self, hidden: Tensor, start_pos: int) -> Tensor:
        """Hidden states after the attention; the rows stay."""
        batch, tokens, _ = hidden.shape
        end = start_pos + tokens
        inner = self.inner
        latent, rope = inner.kv_a(hidden).split([LATENT, ROPE], dim=-1)
        self.rows[:batch, start_pos:end] = inner.norm(latent)
        self.turns[:batch, start_pos:end] = inner.turned(rope, start_pos)
        query = inner.q_proj(hidden).unflatten(-1, (HEADS, WIDTH))
        turned = inner.turned(query[..., NOPE:].transpose(1, 2), start_pos).transpose(1, 2)
        query = torch.cat([query[..., :NOPE], turned], dim=-1)
        rows, turns = self.rows[:batch, :end], self.turns[:batch, :end]
        return inner.o_proj(inner.attend(query, rows, turns, start_pos).flatten(2))


MODULES: dict[str, type[Latent]] = {
    each.__name__: each
    for each in (
        Latent,
        WithoutCache,
        Naive,
        Absorbed,
        Grouped,
        TwoLatents,
        TokensFirst,
        Repeated,
        Interleaved,
        Copies,
        Zeros,
        Assigned,
        Separate,
        Folded,
        Padded,
        Convolved,
        LowRank,
        Biased,
        Matrices,
        ByHand,
        TwoProducts,
        MaskedFirst,
        KeysFirst,
    )
}

LOOKALIKES: dict[str, type[Latent]] = {
    each.__name__: each
    for each in (
        Cropped,
        ReversedBeyond,
        ThirdSwapped,
        Windowed,
        OtherProduct,
        OtherDenominator,
        OtherAxis,
        AddedTo,
    )
}


def made(kind: type[Latent]) -> Latent:
    """A module with weights that a seed gives."""
    torch.manual_seed(0)
    module = kind().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        else:
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return module


def arguments(module: Latent, size: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Hidden states and caches for B, S and P."""
    batch, query, past = size
    noise = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, query, HIDDEN, generator=noise)
    rows = [torch.randn(batch, past, width, generator=noise) for width in module.caches]
    return hidden, *rows


def exported(module: Latent) -> Any:
    """The module as torch.export has it, for any B, S and P."""
    free = torch.export.Dim.DYNAMIC
    caches = tuple({0: free, 1: free} for _ in module.caches)
    shapes = ({0: free, 1: free}, *((caches,) if caches else ()))
    with torch.no_grad():
        return torch.export.export(
            module, arguments(module, (2, 3, 7)), dynamic_shapes=shapes, strict=False
        )


def exported_buffers(module: Buffers) -> Any:
    """A module with buffers, for any B, S and place to start."""
    free = torch.export.Dim.DYNAMIC
    example = (torch.randn(2, 3, HIDDEN), 7)
    with torch.no_grad():
        return torch.export.export(
            module, example, dynamic_shapes=({0: free, 1: free}, free), strict=False
        )
