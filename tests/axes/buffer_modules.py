"""Latent attention with caches of fixed size as PyTorch modules, in the manner of public code.

    DeepSeek    cache[:B, start:end] = rows;  reads cache[:B, :end]
    litgpt      cache[:B].index_copy_(2, places, rows);  reads cache[:B]
    others      cache[:, :, places] = rows, scatter_, cache[:, start] = row

The caches are buffers of the module, or arguments that are changed. What is cached is the rows
(`absorbed`), or keys and values of every head (`naive`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Widths:
    """E, H, N, R, V, C, and the rows of a buffer."""

    hidden: int = 13
    heads: int = 3
    nope: int = 5
    rope: int = 4
    value: int = 7
    latent: int = 11
    rows: int = 53
    sequences: int = 4


TINY = Widths()
REAL = Widths(96, 4, 128, 64, 128, 512, 40, 3)


@dataclass(frozen=True)
class Way:
    """How a module caches.

    Attributes:
        form: `naive` or `absorbed`.
        write: `slice`, `put`, `copy`, `scatter`, `select` or `each`.
        read: the rows up to the `end`, or `all` of them.
        order: `tokens` or `heads` first.
        kept: in `buffers`, or in `arguments`.
        some: whether there is room for more sequences than a call has.
        pairs: the rotary embedding turns them as `complex` numbers, or `real` ones, as ONNX has it.
    """

    form: str = "naive"
    write: str = "slice"
    read: str = "end"
    order: str = "tokens"
    kept: str = "buffers"
    some: bool = True
    pairs: str = "complex"
    widths: Widths = TINY

    @property
    def by_start(self) -> bool:
        return self.write in ("slice", "select")

    def __str__(self) -> str:
        words = (self.form, self.write, self.read, self.order, self.kept)
        return " ".join((*words, "" if self.some else "whole")).strip()


class Module(nn.Module):
    """One attention: of hidden states, where they begin, and caches that are no buffers."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, w = way, way.widths
        self.q_proj = nn.Linear(w.hidden, w.heads * (w.nope + w.rope), bias=False)
        self.kv_a = nn.Linear(w.hidden, w.latent + w.rope, bias=False)
        self.norm = nn.RMSNorm(w.latent, eps=1e-6)
        self.kv_b = nn.Linear(w.latent, w.heads * (w.nope + w.value), bias=False)
        self.o_proj = nn.Linear(w.heads * w.value, w.hidden, bias=False)
        angles = torch.arange(2 * w.rows)[:, None] * 10.0 ** -torch.arange(0, 2, 4 / w.rope)
        turns = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("turns", torch.view_as_real(turns), persistent=False)
        if way.kept == "buffers":
            for name, cache in zip(("k_cache", "v_cache"), empty(way)):
                self.register_buffer(name, cache, persistent=False)

    def forward(self, hidden: Tensor, place: Any, *caches: Tensor) -> Tensor:
        """Hidden states after the attention."""
        w = self.way.widths
        batch, tokens, _ = hidden.shape
        places = place + torch.arange(tokens) if self.way.by_start else place
        query = self.q_proj(hidden).view(batch, tokens, w.heads, w.nope + w.rope)
        nope, rope = query.split([w.nope, w.rope], dim=-1)
        rope = self.turned(rope, places)
        latent, k_pe = self.kv_a(hidden).split([w.latent, w.rope], dim=-1)
        k_pe = self.turned(k_pe.unsqueeze(2), places)
        stores = caches if caches else (self.k_cache, self.v_cache)
        attend = self.naive if self.way.form == "naive" else self.absorbed
        context = attend(nope, rope, self.norm(latent), k_pe, (place, places), stores)
        return self.o_proj(context.flatten(2))

    def turned(self, value: Tensor, places: Tensor) -> Tensor:
        """Rotary embedding `[B, S, H, R]` of pairs."""
        if self.way.pairs == "real":
            cos, sin = self.turns[places].unsqueeze(-3).unbind(-1)
            first, second = value.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack(
                [first * cos - second * sin, first * sin + second * cos], dim=-1
            ).flatten(-2)
        turns = torch.view_as_complex(self.turns)[places].unsqueeze(-2)
        pairs = torch.view_as_complex(value.float().unflatten(-1, (-1, 2)).clone())
        return torch.view_as_real(pairs * turns).flatten(-2).type_as(value)

    def naive(self, nope, rope, latent, k_pe, where, stores) -> Tensor:
        """Keys and values of every head are cached."""
        w = self.way.widths
        query = torch.cat([nope, rope], dim=-1)
        both = self.kv_b(latent).view(*latent.shape[:2], w.heads, w.nope + w.value)
        k_nope, value = both.split([w.nope, w.value], dim=-1)
        key = torch.cat([k_nope, k_pe.expand(-1, -1, w.heads, -1)], dim=-1)
        key, value = (self.cached(each, where, store) for each, store in zip((key, value), stores))
        scores = torch.einsum("bshd,bthd->bsht", query, key) * (w.nope + w.rope) ** -0.5
        return torch.einsum("bsht,bthd->bshd", self.weights(scores, where[1]), value)

    def absorbed(self, nope, rope, latent, k_pe, where, stores) -> Tensor:
        """Rows are cached."""
        w = self.way.widths
        weight = self.kv_b.weight.view(w.heads, w.nope + w.value, w.latent)
        query = torch.einsum("bshd,hdc->bshc", nope, weight[:, : w.nope])
        rows, turns = (
            self.cached(each, where, store)
            for each, store in zip((latent, k_pe.squeeze(2)), stores)
        )
        scores = torch.einsum("bshc,btc->bsht", query, rows)
        scores = scores + torch.einsum("bshr,btr->bsht", rope, turns)
        weights = self.weights(scores * (w.nope + w.rope) ** -0.5, where[1])
        context = torch.einsum("bsht,btc->bshc", weights, rows)
        return torch.einsum("bshc,hdc->bshd", context, weight[:, -w.value :])

    def weights(self, scores: Tensor, places: Tensor) -> Tensor:
        """Softmax over the keys that are no later, `[B, S, H, T]`."""
        hidden = torch.arange(scores.shape[-1]) > places.unsqueeze(-1)
        hidden = hidden.unsqueeze(-2)
        return scores.masked_fill(hidden, -math.inf).softmax(-1, dtype=torch.float32)

    def cached(self, new: Tensor, where: tuple[Any, Tensor], store: Tensor) -> Tensor:
        """New rows `[B, S, ...]` put into a cache, and what is read of it, tokens first."""
        place, places = where
        batch, tokens = new.shape[:2]
        turn = self.way.order == "heads" and new.dim() == 4
        rows = new.transpose(1, 2) if turn else new
        axis = 2 if turn else 1
        part = store[:batch] if self.way.some else store
        getattr(self, self.way.write)(part, rows, place, places, axis)
        if self.way.read == "end":
            part = part.narrow(axis, 0, place + tokens) if turn else part[:, : place + tokens]
        return part.transpose(1, 2) if turn else part

    def slice(self, part, rows, place, places, axis) -> None:
        end = place + rows.shape[axis]
        if axis == 2:
            part[:, :, place:end] = rows
        else:
            part[:, place:end] = rows

    def select(self, part, rows, place, places, axis) -> None:
        part.select(axis, place).copy_(rows.select(axis, 0))

    def put(self, part, rows, place, places, axis) -> None:
        if axis == 2:
            part[:, :, places] = rows
        else:
            part[:, places] = rows

    def copy(self, part, rows, place, places, axis) -> None:
        part.index_copy_(axis, places, rows)

    def scatter(self, part, rows, place, places, axis) -> None:
        shape = [1] * rows.dim()
        shape[axis] = -1
        part.scatter_(axis, places.view(shape).expand(rows.shape), rows)

    def each(self, part, rows, place, places, axis) -> None:
        batch = torch.arange(rows.shape[0])[:, None]
        if axis == 2:
            heads = torch.arange(rows.shape[1])[None, :, None]
            part[batch[..., None], heads, places[:, None]] = rows
        else:
            part[batch, places] = rows


def empty(way: Way, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Caches without a row."""
    w = way.widths
    count = batch or w.sequences
    if way.form == "absorbed":
        return torch.zeros(count, w.rows, w.latent), torch.zeros(count, w.rows, w.rope)
    if way.order == "heads":
        key, value = (w.heads, w.rows, w.nope + w.rope), (w.heads, w.rows, w.value)
    else:
        key, value = (w.rows, w.heads, w.nope + w.rope), (w.rows, w.heads, w.value)
    return torch.zeros(count, *key), torch.zeros(count, *value)


def made(way: Way, kind: type[Module] = Module) -> Module:
    """A module with weights that a seed gives."""
    torch.manual_seed(0)
    module = kind(way).eval()
    for parameter in module.parameters():
        std = 1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=std)
    return module


def call(way: Way, batch: int, tokens: int, past: int) -> tuple[Any, ...]:
    """Hidden states and their place, for B, S and P."""
    noise = torch.Generator().manual_seed(97 * past + tokens)
    hidden = torch.randn(batch, tokens, way.widths.hidden, generator=noise)
    if way.by_start:
        return hidden, past
    places = torch.arange(past, past + tokens)
    if way.write == "each":
        places = places.expand(batch, -1).clone()
    return hidden, places


def exported(way: Way, *, kind: type[Module] = Module, module: Module | None = None) -> Any:
    """The module as torch.export has it, for any B, S and place."""
    free = torch.export.Dim.DYNAMIC
    tokens = 1 if way.write == "select" else 3
    size = 2 if way.some else way.widths.sequences
    given = call(way, size, tokens, 7)
    axes = {1: free} if tokens > 1 else {}
    if way.some or way.kept == "arguments":
        axes = {0: free, **axes}
    places: Any = free
    if not way.by_start:
        places = {0: free} if way.write != "each" else {0: axes.get(0, size), 1: free}
    shapes: tuple[Any, ...] = (axes, places)
    if way.kept == "arguments":
        count = way.widths.sequences if way.some else size
        caches = empty(way, count)
        given = (*given, *caches)
        of_cache = {} if way.some else {0: free}
        shapes = (*shapes, (of_cache, of_cache))
    with torch.no_grad():
        return torch.export.export(
            module or made(way, kind), given, dynamic_shapes=shapes, strict=False
        )


__all__ = [
    "REAL",
    "TINY",
    "Module",
    "Way",
    "Widths",
    "call",
    "empty",
    "exported",
    "made",
    "replace",
]
