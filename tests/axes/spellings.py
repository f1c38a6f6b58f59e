"""Modules that spell their attention with operators that few others use, several at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.axes.modules import HEADS, HIDDEN, LATENT, NOPE, ROPE, VALUE, WIDTH, Latent


class Spelled(Latent):
    """W_UK and W_UV by tensordot, k_pe stacked, ellipses, a learned scale, NaN to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.k_up = nn.Parameter(torch.empty(HEADS, LATENT, NOPE))
        self.v_up = nn.Parameter(torch.empty(HEADS, LATENT, VALUE))
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        nope, value = (
            torch.tensordot(latent, each, dims=([2], [1])).permute(0, 2, 1, 3)
            for each in (self.k_up, self.v_up)
        )
        return torch.cat([nope, torch.stack([rope] * HEADS, dim=1)], dim=-1), value

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = torch.einsum("...sd,...td->...st", query, key) * torch.exp(-self.temperature)
        weights = (scores + self.mask(query, key, start)).softmax(-1).nan_to_num(0.0)
        return torch.einsum("...st,...tv->...sv", weights, value)


class OfRankThree(Latent):
    """SDPA of `[B H, T, D]`; k_pe by an index, keys and values by a layer for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.k_ups = nn.ModuleList(nn.Linear(LATENT, NOPE, bias=False) for _ in range(HEADS))
        self.v_ups = nn.ModuleList(nn.Linear(LATENT, VALUE, bias=False) for _ in range(HEADS))

    def made(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        nope, value = (
            torch.stack([up(latent) for up in each], dim=1) for each in (self.k_ups, self.v_ups)
        )
        first = torch.zeros(HEADS, dtype=torch.long)
        return torch.cat([nope, rope[:, None][:, first]], dim=-1), value

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        mask = self.mask(query, key, start)
        flat = [each.flatten(0, 1) for each in (query, key, value)]
        made = functional.scaled_dot_product_attention(*flat, attn_mask=mask)
        return made.unflatten(0, (query.shape[0], HEADS))


class OfRankFive(Latent):
    """SDPA with an axis more in front, keys read by `mT`, and k_pe by `broadcast_to`."""

    def repeated(self, rope: Tensor) -> Tensor:
        shape = (rope.shape[0], HEADS, rope.shape[1], ROPE)
        return torch.broadcast_to(rope[:, None], shape)

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        key, mask = key.mT.contiguous().mT, self.mask(query, key, start)
        operands = [each[:, None] for each in (query, key, value)]
        return functional.scaled_dot_product_attention(*operands, attn_mask=mask)[:, 0]


class OtherProjections(Latent):
    """Queries by what `projected` makes; the output is projected with tokens in front."""

    def projected(self, hidden: Tensor) -> Tensor:
        """Queries `[B, S, H, N + R]`."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        latent, rope = self.kv_a(hidden).split([LATENT, ROPE], dim=-1)
        start = past[0].shape[1]
        new = self.norm(latent), self.turned(rope, start)
        rows = [torch.cat(each, dim=1) for each in zip(past, new)]
        nope, turning = self.projected(hidden).transpose(1, 2).split([NOPE, ROPE], dim=-1)
        query = torch.cat([nope, self.turned(turning, start)], dim=-1)
        context = self.scored(query, *self.made(*rows), start)
        made = self.o_proj(context.permute(2, 0, 1, 3).flatten(2))
        return (made.transpose(0, 1), *rows)


class QueriesOfHeads(OtherProjections):
    """A matrix for each head, as JAX has them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_head = nn.Parameter(torch.empty(HIDDEN, HEADS, WIDTH))

    def projected(self, hidden: Tensor) -> Tensor:
        return torch.einsum("bse,ehk->bshk", hidden, self.by_head)


class QueriesOfSums(OtherProjections):
    """Each number of a query is the sum of two that are projected."""

    def projected(self, hidden: Tensor) -> Tensor:
        made = self.q_proj(hidden)
        return (made + made.roll(3, -1)).unflatten(-1, (HEADS, WIDTH))


class OneMore(Latent):
    """Softmax of scores beside one of zero, in front of them (softmax1)."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        return self.without_first(self.masked(query, key, start)) @ value

    def masked(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Scores, minus infinity for keys that a query may not see."""
        hidden = torch.isinf(self.mask(query, key, start))
        return (query @ key.transpose(-1, -2) / 3).masked_fill(hidden, float("-inf"))

    def without_first(self, scores: Tensor) -> Tensor:
        """Weights that do not sum up to 1."""
        return functional.pad(scores, (1, 0)).softmax(-1)[..., 1:]


class SinksFirst(OneMore):
    """A logit for each head in front of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.empty(HEADS))

    def without_first(self, scores: Tensor) -> Tensor:
        sinks = self.sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat([sinks, scores], dim=-1).softmax(-1)[..., 1:]


class LogarithmOfSum(OneMore):
    """Softmax by way of the logarithm of the sum."""

    def without_first(self, scores: Tensor) -> Tensor:
        return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))


class WidthsGathered(Latent):
    """Numbers of a row in a stored order, by three operators; a number for each head as a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.empty(HEADS, 1, 1))
        self.register_buffer("order", torch.arange(WIDTH).roll(2), persistent=False)
        self.register_buffer("order_of_values", torch.arange(VALUE).flip(0), persistent=False)

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        query, key = query[..., self.order], torch.index_select(key, -1, self.order)
        value = torch.gather(value, -1, self.order_of_values.expand(value.shape))
        scores = query @ key.transpose(-1, -2) / (1.5 + self.temperature)
        scores = scores + self.mask(query, key, start)
        below = torch.exp(scores - scores.amax(-1, keepdim=True))
        return below @ value / below.sum(-1, keepdim=True)


class OneMoreAtTheOtherEnd(OneMore):
    """A look-alike: the zero is in front, and the last key is left out."""

    def without_first(self, scores: Tensor) -> Tensor:
        return functional.pad(scores, (1, 0)).softmax(-1)[..., :-1]


class OneMoreOfTwo(OneMore):
    """A look-alike: two zeros in front, of which one is a key."""

    def without_first(self, scores: Tensor) -> Tensor:
        return functional.pad(scores, (2, 0)).softmax(-1)[..., 1:-1]


class LargerOfTwo(Latent):
    """A look-alike: scores are the larger of two."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        scores = query @ key.transpose(-1, -2) / 3
        scores = torch.max(scores, 0.5 * scores) + self.mask(query, key, start)
        return scores.softmax(-1) @ value


class HeadsRolled(Latent):
    """A look-alike: heads of the values go round by how many tokens are asked for."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        return super().scored(query, key, value.roll(query.shape[-2], 1), start)


class WidthShifted(Latent):
    """A look-alike: the nope part begins one place further on, where there are many tokens."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        more = torch.sym_min(torch.sym_max(key.shape[-2], 1000) - 1000, 1)
        twice = torch.cat([key, key], dim=-1)
        return super().scored(query, twice.narrow(-1, more, WIDTH), value, start)


class ShiftedByCount(Latent):
    """A look-alike: a bias of the values that is a number of tokens."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        return super().scored(query, key, value + query.shape[-2], start)


class FilledByCount(Latent):
    """A look-alike: the same by a tensor that is filled with it."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        value = value + torch.full(value.shape, query.shape[-2], dtype=value.dtype)
        return super().scored(query, key, value, start)


class KeysTwice(Latent):
    """A look-alike, or none: all keys and values a second time, with a bias of their own."""

    def scored(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        mask = self.mask(query, key, start)
        scores = query @ key.repeat(1, 1, 2, 1).transpose(-1, -2) / 3 + torch.cat([mask, mask], -1)
        return scores.softmax(-1) @ value.repeat(1, 1, 2, 1)


SPELLINGS: dict[str, type[Latent]] = {
    each.__name__: each
    for each in (
        Spelled,
        OfRankThree,
        OfRankFive,
        OneMore,
        SinksFirst,
        LogarithmOfSum,
        WidthsGathered,
    )
}
OTHERS: dict[str, type[Latent]] = {
    each.__name__: each
    for each in (
        HeadsRolled,
        WidthShifted,
        ShiftedByCount,
        FilledByCount,
        KeysTwice,
        LargerOfTwo,
        OneMoreAtTheOtherEnd,
        OneMoreOfTwo,
    )
}
