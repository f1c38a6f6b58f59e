"""Proof of one site: the original attention against the float64 definition of the operator.

The original nodes run on random queries, latent rows, masks and caches; the definition runs on the
same, with the extracted matrices in float64. What is compared is the attention's output, with
several sequences, more than one new token and a past, so that a wrong scale, a wrong mask, a wrong
sink, swapped rope dims or the matrices of the wrong head all show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Float64, Value
from mla_opt.matching.extraction import Region
from mla_opt.operator.reference import latent_attention
from mla_opt.sites import BiasTerm, LatentAttentionSite, LatentWeights

TOLERANCE = {"float64": 1e-6, "float32": 2e-5, "float16": 2e-2}
"""Largest relative error that is rounding, by element type."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What running one site showed, errors relative to the largest magnitude."""

    region_error: float
    attention_error: float
    tolerance: float

    @property
    def error(self) -> float:
        """The larger of the two; NaN if one is."""
        return float(np.max([self.region_error, self.attention_error]))

    @property
    def holds(self) -> bool:
        """Whether the error is no more than rounding; never true of NaN."""
        return self.error <= self.tolerance


def certify(graph: Graph, site: LatentAttentionSite, weights: LatentWeights) -> Certificate:
    """Measure how far the extracted matrices and the parsed core are from the original nodes."""
    binding = graph.nearest_binding(*EXAMPLE)
    rng = np.random.default_rng(1)
    case = _Case(graph, site, weights, binding, rng, _Matrices.of(weights))
    kind = str(graph.dtype(site.core.query))
    return Certificate(
        region_error=case.region_error(),
        attention_error=case.attention_error(),
        tolerance=TOLERANCE.get(kind, 2e-2),
    )


@dataclass(frozen=True, slots=True)
class _Matrices:
    """The matrices in float64, converted once: they are the largest thing here."""

    w_uk: Float64
    w_uv: Float64
    value_bias: Float64

    @classmethod
    def of(cls, weights: LatentWeights) -> _Matrices:
        bias = weights.value_bias
        return cls(
            weights.w_uk.astype(np.float64),
            weights.w_uv.astype(np.float64),
            np.zeros(1) if bias is None else bias[None, :, None, :].astype(np.float64),
        )


@dataclass(slots=True)
class _Case:
    graph: Graph
    site: LatentAttentionSite
    weights: LatentWeights
    binding: Binding
    rng: np.random.Generator
    matrices: _Matrices

    def region_error(self) -> float:
        """Error of keys and values over several sequences."""
        region = Region.of(self.graph, self.site)
        shape = region.shape(region.latent)
        rows = self._rounded((shape[0], shape[-2], self._row_width()), region.latent)
        keys, values = region.run(rows)
        of_keys, of_values = (
            _relative(self._keys(rows), keys),
            _relative(self._values(rows), values),
        )
        return float(np.max([of_keys, of_values]))

    def attention_error(self) -> float:
        """Error of the attention's output."""
        core = self.site.core
        rows, feeds = self._rows()
        query_shape = _shape(self.binding, core.query)
        query = self._rounded(query_shape, core.query)
        feeds[core.query] = query.astype(self.graph.dtype(core.query))
        bias = self._bias(feeds)
        (seen,) = self.binding.run([core.output], feeds)
        sink = None if core.sink is None else _content(self.binding, core.sink).reshape(-1)
        latent = latent_attention(
            self._absorbed(query),
            rows[:, None],
            bias=bias,
            sink=sink,
            scale=self.site.scale,
            kv_lora_rank=self.weights.w_uk.shape[2],
            causal=core.causal,
        ).output
        return _relative(latent @ self.matrices.w_uv + self.matrices.value_bias, seen)

    def _keys(self, rows: Float64) -> Float64:
        """Keys ``[B, H, T, D]`` of latent rows ``[B, T, C + R]``, by the matrices."""
        c = self.weights.w_uk.shape[2]
        shape = (rows.shape[0], self.weights.w_uk.shape[0], rows.shape[1], self._key_width())
        keys = np.zeros(shape)
        keys[..., list(self.weights.nope_dims)] = rows[
            :, None, :, :c
        ] @ self.matrices.w_uk.swapaxes(-1, -2)
        keys[..., list(self.weights.rope_dims)] = rows[:, None, :, c:]
        keys *= self.weights.key_scale
        return keys

    def _values(self, rows: Float64) -> Float64:
        """Values ``[B, H, T, V]`` of latent rows ``[B, T, C + R]``, by the matrices."""
        c = self.weights.w_uk.shape[2]
        values: Float64 = rows[:, None, :, :c] @ self.matrices.w_uv
        return values + self.matrices.value_bias

    def _key_width(self) -> int:
        return len(self.weights.nope_dims) + len(self.weights.rope_dims)

    def _absorbed(self, query: Float64) -> Float64:
        nope = query[..., list(self.weights.nope_dims)]
        absorbed = nope @ self.matrices.w_uk
        return np.concatenate([absorbed, query[..., list(self.weights.rope_dims)]], axis=-1)

    def _rows(self) -> tuple[Float64, dict[Value, Array]]:
        """Latent rows ``[B, T, C + R]``, and what the original is fed for them."""
        if self.site.expanded is None:
            shape = _shape(self.binding, self.site.latent)
            return self._fed_rows(shape[0], shape[-2])
        key_past = _shape(self.binding, self.site.expanded[0].past)
        batch, past = key_past[0], key_past[2]
        old = self._rounded((batch, past, self._row_width()), self.site.latent)
        shape = _shape(self.binding, self.site.latent)
        new, feeds = self._fed_rows(shape[0], shape[-2])
        for part, expand in zip(self.site.expanded, (self._keys, self._values)):
            feeds[part.past] = expand(old).astype(self.graph.dtype(part.past))
        return np.concatenate([old, new], axis=1), feeds

    def _row_width(self) -> int:
        return int(self.weights.w_uk.shape[2]) + len(self.weights.rope_dims)

    def _fed_rows(self, batch: int, tokens: int) -> tuple[Float64, dict[Value, Array]]:
        rows = self._rounded((batch, tokens, self._row_width()), self.site.latent)
        c = self.weights.w_uk.shape[2]
        parts = [(self.site.latent, rows[..., :c])]
        if self.site.rope is not None:
            parts.append((self.site.rope, rows[..., c:]))
        return rows, {
            value: part.reshape(_shape(self.binding, value)).astype(self.graph.dtype(value))
            for value, part in parts
        }

    def _bias(self, feeds: dict[Value, Array]) -> Float64 | None:
        """Random masks for every bias term; returns their sum as an additive bias."""
        total: Float64 | None = None
        for term in self.site.core.bias:
            content = feeds.get(term.value)
            if content is None:
                content = self._random_bias(term)
                feeds[term.value] = content
            part = _additive(term.kind, content)
            total = part if total is None else total + part
        return total

    def _random_bias(self, term: BiasTerm) -> Array:
        """A mask that leaves every query something to attend to, or random addends."""
        if self.graph.is_constant(term.value):
            return _content(self.binding, term.value)
        shape = self.binding.shape(term.value) or self._score_shape()
        if self.graph.dtype(term.value) != np.bool_:
            return self._rounded(shape, term.value).astype(self.graph.dtype(term.value))
        mask = self.rng.random(shape) < 0.7
        mask[..., 0] = term.kind != "blocked"
        return mask

    def _score_shape(self) -> tuple[int, ...]:
        """``[B, 1, S, T]``: what every bias broadcasts from, where its own shape is unknown."""
        query, value = (
            _shape(self.binding, each) for each in (self.site.core.query, self.site.core.value)
        )
        return (query[0], 1, query[2], value[2])

    def _rounded(self, shape: tuple[int, ...], like: Value) -> Float64:
        """Random numbers that are exact in the element type of ``like``."""
        drawn = self.rng.standard_normal(shape).astype(self.graph.dtype(like))
        return drawn.astype(np.float64)


def _additive(kind: str, content: Array) -> Float64:
    if kind == "blocked":
        content = ~content.astype(bool)
    if content.dtype == np.bool_:
        return np.where(content, 0.0, -np.inf)
    return content.astype(np.float64)


def _relative(expected: Float64, seen: Array) -> float:
    """Largest error, relative to the largest magnitude; NaN where either has one."""
    if expected.shape != seen.shape:
        return float("inf")
    if not seen.size:
        return 0.0
    return float(np.abs(expected - seen).max() / max(np.abs(expected).max(), 1e-30))


def _shape(binding: Binding, value: Value) -> tuple[int, ...]:
    shape = binding.shape(value)
    assert shape is not None, value.name
    return shape


def _content(binding: Binding, value: Value) -> Array:
    (content,) = binding.run([value], {})
    return content
