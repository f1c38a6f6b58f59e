"""Decoders of one latent attention in plain PyTorch, with the head widths of DeepSeek."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN, HEADS, NOPE, ROPE, VALUE, LATENT, VOCABULARY = 48, 4, 128, 64, 128, 512, 61
ROWS = 24


class Decoder(nn.Module):
    """The rows of the past go in, those of past and new tokens come out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.query = nn.Linear(HIDDEN, HEADS * (NOPE + ROPE), bias=False)
        self.down = nn.Linear(HIDDEN, LATENT + ROPE, bias=False)
        self.norm = nn.RMSNorm(LATENT, eps=1e-6)
        self.up = nn.Linear(LATENT, HEADS * (NOPE + VALUE), bias=False)
        self.out = nn.Linear(HEADS * VALUE, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_latent: Tensor,
        past_key: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of ids `[B, S]`, a mask `[B, P + S]`, and rows `[B, 1, P, C]` and `[B, 1, P, R]`."""
        hidden = self.embed(input_ids)
        latent, key = self.rows(hidden, position_ids)
        latent, key = torch.cat([past_latent, latent], 2), torch.cat([past_key, key], 2)
        places = torch.arange(latent.shape[2])
        seen = places <= places[past_latent.shape[2] :, None]
        seen = seen & attention_mask[:, None, None, :].bool()
        return self.logits(hidden, position_ids, latent, key, seen), latent, key

    def rows(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        latent, key = self.down(hidden)[:, None].split([LATENT, ROPE], -1)
        return self.norm(latent), turned(key, positions)

    def logits(
        self, hidden: Tensor, positions: Tensor, latent: Tensor, key: Tensor, seen: Tensor
    ) -> Tensor:
        nope, rope = by_head(self.query(hidden)).split([NOPE, ROPE], -1)
        key_nope, value = by_head(self.up(latent[:, 0])).split([NOPE, VALUE], -1)
        query = torch.cat([nope, turned(rope, positions)], -1)
        keys = torch.cat([key_nope, key.expand(-1, HEADS, -1, -1)], -1)
        scores = query @ keys.transpose(-1, -2) * (NOPE + ROPE) ** -0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return self.head(hidden + self.out(attended))


class BufferDecoder(Decoder):
    """The rows lie in buffers of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latent_cache", torch.zeros(1, 1, ROWS, LATENT))
        self.register_buffer("key_cache", torch.zeros(1, 1, ROWS, ROPE))

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Of ids and positions `[1, S]`."""
        hidden = self.embed(input_ids)
        latent, key = self.rows(hidden, position_ids)
        self.latent_cache.index_copy_(2, position_ids[0], latent)
        self.key_cache.index_copy_(2, position_ids[0], key)
        seen = torch.arange(ROWS) <= position_ids[0, :, None]
        return self.logits(hidden, position_ids, self.latent_cache, self.key_cache, seen)


def by_head(flat: Tensor) -> Tensor:
    return flat.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def turned(rows: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding on halves of `[B, H, S, R]`."""
    frequencies = 10000.0 ** (-torch.arange(0, ROPE, 2) / ROPE)
    angles = positions[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    first, second = rows.chunk(2, -1)
    return rows * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def exported() -> torch.export.ExportedProgram:
    """The decoder, for every batch, past and number of new tokens."""
    auto = torch.export.Dim.AUTO
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)
    past = torch.zeros(2, 1, 11, LATENT), torch.zeros(2, 1, 11, ROPE)
    shapes = ({0: auto, 1: auto},) * 3 + ({0: auto, 2: auto},) * 2
    given = (ids, mask, torch.arange(11, 16).repeat(2, 1), *past)
    return torch.export.export(Decoder().eval(), given, dynamic_shapes=shapes)


def exported_with_buffers() -> torch.export.ExportedProgram:
    """The decoder that keeps its rows itself."""
    ids = torch.ones(1, 5, dtype=torch.int64)
    shapes = ({1: torch.export.Dim.AUTO},) * 2
    given = (ids, torch.arange(5)[None])
    return torch.export.export(BufferDecoder().eval(), given, dynamic_shapes=shapes)


def greedy(tokens: list[int], count: int) -> list[int]:
    """What the module says, the whole text anew for each token."""
    module, text = Decoder().eval(), list(tokens)
    nothing = torch.zeros(1, 1, 0, LATENT), torch.zeros(1, 1, 0, ROPE)
    for _ in range(count):
        ids, positions = torch.tensor([text]), torch.arange(len(text))[None]
        with torch.no_grad():
            logits = module(ids, torch.ones_like(ids), positions, *nothing)[0]
        text.append(int(logits[0, -1].argmax()))
    return text[len(tokens) :]
