"""Proof of one site: the original attention against the float64 definition of the operator.

The original nodes run on random queries, latent rows, masks and caches; the definition runs on the
same, with the extracted matrices in float64. What is compared is the attention's output, with
several sequences, more than one new token and a past, so that a wrong scale, a wrong mask, a wrong
sink, swapped rope dims or the matrices of the wrong head all show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mla_opt.errors import InputError
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Float64, Value
from mla_opt.matching.extraction import Region
from mla_opt.matching.rounding import OPERATORS, coarsest, of_sums
from mla_opt.operator.reference import latent_attention
from mla_opt.sites import BiasTerm, CachedTensor, LatentAttentionSite, LatentWeights
from mla_opt.sites.core import CoreLayouts, sinks_of_heads
from mla_opt.sites.layout import QUERY, SCORES, Part, to_standard

_FEW_ROWS = 64
"""Rows that tell how large scores are."""

_MOST_CALLS = 4
"""Calls that fill a cache with rows of their own; further ones bring the same rows again."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What running one site showed, errors relative to the largest magnitude.

    ``region`` and ``attention`` are each an error, and the largest that is rounding: of keys and
    values, and of the output (:mod:`mla_opt.matching.rounding`).
    """

    region: tuple[float, float]
    attention: tuple[float, float]

    @property
    def worse(self) -> tuple[float, float]:
        """Error and tolerance of the one that is farther off; of one that is NaN if one is."""
        pair = (self.region, self.attention)
        ratios = [error / tolerance for error, tolerance in pair]
        return pair[int(np.argmax(ratios))]

    @property
    def error(self) -> float:
        """Of the worse of the two."""
        return self.worse[0]

    @property
    def tolerance(self) -> float:
        """Of the worse of the two."""
        return self.worse[1]

    @property
    def holds(self) -> bool:
        """Whether the errors are no more than rounding; never true of NaN."""
        return all(error <= tolerance for error, tolerance in (self.region, self.attention))


def certify(graph: Graph, site: LatentAttentionSite, weights: LatentWeights) -> Certificate:
    """Measure how far the extracted matrices and the parsed core are from the original nodes."""
    binding = graph.nearest_binding(*EXAMPLE)
    rng = np.random.default_rng(1)
    case = _Case(graph, site, weights, binding, rng)
    return Certificate(case.region_error(), case.attention_error())


@dataclass(slots=True)
class _Case:
    graph: Graph
    site: LatentAttentionSite
    weights: LatentWeights
    binding: Binding
    rng: np.random.Generator

    @property
    def region(self) -> Region:
        """What makes keys and values."""
        return Region.of(self.graph, self.site)

    @property
    def layouts(self) -> CoreLayouts:
        """Where the axes of the attention are."""
        assert self.site.core.layouts is not None
        return self.site.core.layouts

    def _kind(self, made: Sequence[Array]) -> str:
        """The element type that rounds most, where ``made`` is what was computed.

        Graphs that are run in a wider type than theirs, as bfloat16 is, round no more than that.
        """
        inner = {str(self.graph.dtype(value)) for value in self.site.inner}
        return coarsest((*(str(array.dtype) for array in made), *(inner - {"bfloat16"})))

    def _sums(self) -> list[int]:
        """How many terms the sums have that make keys and values of rows."""
        nodes = {self.graph.producer(value) for value in self.site.inner}
        layers = [self.graph.operation(node) for node in nodes if node is not None]
        return [_terms(self.binding, each) for each in layers if isinstance(each, op.Linear)]

    def region_error(self) -> tuple[float, float]:
        """Error of keys and values over several sequences, and what rounding may make of it."""
        batch, tokens = self.region.count()
        rows = self._rounded((batch, tokens, self._row_width()), self.site.latent)
        keys, values = self.region.run(rows)
        heads = max(len(self.weights.by_head), keys.shape[1], values.shape[1])
        errors = [self._error_of_head(rows, keys, values, head) for head in range(heads)]
        return float(np.max(errors)), of_sums(self._kind((keys, values)), *self._sums())

    def _error_of_head(self, rows: Float64, keys: Array, values: Array, head: int) -> float:
        """Error of keys and values of one head; only that one's are in float64 meanwhile."""
        one = slice(head, head + 1)
        nope, rope = list(self.weights.nope_dims), list(self.weights.rope_dims)
        expected, seen = self._keys(rows, one), keys[:, one]
        parts = [
            _relative(expected[..., nope], seen[..., nope]),
            _relative(expected[..., rope], seen[..., rope]),
            _relative(self._values(rows, one), values[:, one]),
        ]
        return float(np.max(parts))

    def attention_error(self) -> tuple[float, float]:
        """Error of the attention's output, and what rounding may make of it."""
        core = self.site.core
        rows, feeds = self._rows()
        query, feeds[core.query] = self._query()
        bias = self._bias(feeds)
        (seen,) = self.binding.run([core.output], feeds)
        absorbed = self._absorbed(query)
        sink = None
        if core.sink is not None:
            heads = self.weights.w_uk.shape[0]
            sink = sinks_of_heads(_number_or_content(self.binding, core.sink), heads)
        latent = latent_attention(
            absorbed,
            rows[:, None],
            bias=bias,
            sink=sink,
            scale=self.site.scale,
            kv_lora_rank=self.weights.w_uk.shape[2],
            causal=core.causal,
        ).output
        expected = _by_head(latent, self.weights.w_uv) + self._value_bias()
        error = _relative(expected, to_standard(seen, self.layouts.output, QUERY))
        kind = self._kind((seen,))
        if isinstance(self.graph.operation(core.first), op.FusedAttention):
            kind = coarsest((kind, "float32"))  # that is what its scale is, whatever it computes in
        return error, of_sums(kind, *self._sums_of_attention(absorbed, query.shape[-1], rows))

    def _sums_of_attention(self, absorbed: Float64, width: int, rows: Float64) -> list[float]:
        """Terms of the sums that make values, probabilities and the mean, and of those of scores.

        An error of a score is one of its probability, so that large scores make more of it.
        """
        keys = self._sums()
        few = rows[:, None, :_FEW_ROWS]
        size = _weighed(absorbed @ few.swapaxes(-1, -2) * self.site.scale)
        made = (*keys, width, 2 * OPERATORS)
        return [*keys, 2 * rows.shape[1], *(size * terms for terms in made)]

    def _query(self) -> tuple[Float64, Array]:
        """A random query, ``[B, H, S, N + R]`` and as the graph has it."""
        value, layout = self.site.core.query, self.layouts.query
        given = self._rounded(_shape(self.binding, value), value)
        return to_standard(given, layout, QUERY), given.astype(self.graph.dtype(value))

    def _keys(self, rows: Float64, heads: slice) -> Float64:
        """Keys ``[B, H, T, D]`` of some heads of latent rows ``[B, T, C + R]``, by the matrices."""
        w_uk = self.weights.w_uk[heads]
        count, _, c = w_uk.shape
        keys = np.zeros((rows.shape[0], count, rows.shape[1], self._key_width()))
        keys[..., list(self.weights.nope_dims)] = _by_head(
            rows[:, None, :, :c], w_uk.swapaxes(-1, -2)
        )
        keys[..., list(self.weights.rope_dims)] = rows[:, None, :, c:]
        keys *= self.weights.key_scale
        bias = self.weights.key_bias
        return keys if bias is None else keys + bias[None, heads, None, :].astype(np.float64)

    def _values(self, rows: Float64, heads: slice) -> Float64:
        """Values ``[B, H, T, V]`` of some heads of latent rows, by the matrices."""
        w_uv, bias = self.weights.w_uv[heads], self.weights.value_bias
        values = _by_head(rows[:, None, :, : w_uv.shape[1]], w_uv)
        return values if bias is None else values + bias[None, heads, None, :].astype(np.float64)

    def _value_bias(self) -> Float64:
        bias = self.weights.value_bias
        return np.zeros(1) if bias is None else bias[None, :, None, :].astype(np.float64)

    def _key_width(self) -> int:
        return len(self.weights.nope_dims) + len(self.weights.rope_dims)

    def _absorbed(self, query: Float64) -> Float64:
        nope = query[..., list(self.weights.nope_dims)]
        absorbed = _by_head(nope, self.weights.w_uk)
        return np.concatenate([absorbed, query[..., list(self.weights.rope_dims)]], axis=-1)

    def _rows(self) -> tuple[Float64, dict[Value, Array]]:
        """Latent rows ``[B, T, C + R]``, and what the original is fed for them."""
        batch, tokens = self.region.count()
        if self.site.expanded is not None:
            return self._cached_rows(self.site.expanded, batch, tokens)
        new = self._rounded((batch, tokens, self._row_width()), self.site.latent)
        return new, self.region.fed(new)

    def _cached_rows(
        self, expanded: Sequence[CachedTensor], batch: int, tokens: int
    ) -> tuple[Float64, dict[Value, Array]]:
        """Rows of all tokens, and what the caches hold for them: what rows once became.

        A long buffer has the same few rows again and again.
        """
        count = self.region.joined_shape(expanded[0])[expanded[0].axis]
        calls = min(-(-count // tokens), _MOST_CALLS)
        again = -(-count // (calls * tokens))
        parts = [self._rounded((batch, tokens, self._row_width()), self.site.latent)]
        parts += [self._rounded(parts[0].shape, self.site.latent) for _ in range(calls - 1)]
        wanted = [part.new for part in expanded]
        made = [self.binding.run(wanted, self.region.fed(rows)) for rows in parts]
        feeds = {}
        for place, part in enumerate(expanded):
            rows = [part.like_joined(each[place]) for each in made]
            kept = np.concatenate(rows * again, axis=part.axis)
            feeds[part.joined] = kept.take(range(count), axis=part.axis)
        return np.concatenate(parts * again, axis=1)[:, :count], feeds

    def _row_width(self) -> int:
        return int(self.weights.w_uk.shape[2]) + len(self.weights.rope_dims)

    def _bias(self, feeds: dict[Value, Array]) -> Float64 | None:
        """Random masks for every bias term; returns their sum as an additive bias."""
        total: Float64 | None = None
        for term in self.site.core.bias:
            content = feeds.get(term.value)
            if content is None:
                content = self._random_bias(term)
                feeds[term.value] = content
            part = to_standard(_additive(term, content), term.layout or (), SCORES)
            total = part if total is None else total + part
        return total

    def _random_bias(self, term: BiasTerm) -> Array:
        """A mask that leaves every query something to attend to, or random addends."""
        if self.graph.is_constant(term.value):
            return _content(self.binding, term.value)
        shape = self._bias_shape(term)
        if self.graph.dtype(term.value) != np.bool_:
            return self._rounded(shape, term.value).astype(self.graph.dtype(term.value))
        mask = self.rng.random(shape) < 0.7
        axis = next((at for at, parts in enumerate(term.layout or ()) if _is_keys(parts)), None)
        first = mask if axis is None else np.moveaxis(mask, axis, 0)[:1]
        first[...] = term.kind != "blocked"
        return mask

    def _bias_shape(self, term: BiasTerm) -> tuple[int, ...]:
        """The shape of a mask; by what it is broadcast to, where its own is unknown."""
        shape = self.binding.shape(term.value)
        if shape is not None:
            return shape
        batch, heads, new, _ = self._standard_query().shape
        _, seen = self.region.count()
        if self.site.expanded is not None:
            part = self.site.expanded[0]
            seen = self.region.joined_shape(part)[part.axis]
        counts = {"batch": batch, "head": heads, "query": new, "key": seen, "width": 1}
        return tuple(
            math.prod(part.size or counts[part.role] for part in axis) for axis in term.layout or ()
        )

    def _standard_query(self) -> Array:
        value = self.site.core.query
        return to_standard(np.empty(_shape(self.binding, value)), self.layouts.query, QUERY)

    def _rounded(self, shape: tuple[int, ...], like: Value) -> Float64:
        """Random numbers that are exact in the element type of ``like``."""
        drawn = self.rng.standard_normal(shape).astype(self.graph.dtype(like))
        return drawn.astype(np.float64)


def _by_head(rows: Float64, matrices: Array) -> Float64:
    """Rows ``[B, H or 1, T, K]`` times a matrix of each head, ``[H, K, M]``, in float64.

    One head at a time: the matrices are the largest thing here, and are never all in float64.
    """
    heads = np.broadcast_to(rows, (len(rows), len(matrices), *rows.shape[2:]))
    made = np.empty((*heads.shape[:3], matrices.shape[2]))
    for head, matrix in enumerate(matrices):
        np.matmul(heads[:, head], matrix.astype(np.float64), out=made[:, head])
    return made


def _additive(term: BiasTerm, content: Array) -> Float64:
    if term.kind == "blocked":
        content = ~content.astype(bool)
    if content.dtype == np.bool_:
        return np.where(content, 0.0, -np.inf)
    return content.astype(np.float64) * term.factor


def _is_keys(parts: tuple[Part, ...]) -> bool:
    return any(part.role == "key" for part in parts)


def _relative(expected: Float64, seen: Array) -> float:
    """Largest error of any head, relative to that head's magnitude; NaN where either has one."""
    if expected.shape != seen.shape:
        return float("inf")
    if not seen.size:
        return 0.0
    errors = np.abs(expected - seen).max(axis=(0, 2, 3))
    return float((errors / np.maximum(np.abs(expected).max(axis=(0, 2, 3)), 1e-30)).max())


def _weighed(scores: Float64) -> float:
    """Mean square of the scores of the head that has the largest, each as far as it counts."""
    shares = np.exp(2 * (scores - scores.max(axis=-1, keepdims=True)))
    squares = (shares * np.square(scores)).sum(axis=-1) / shares.sum(axis=-1)
    return float(squares.mean(axis=(0, 2)).max())


def _terms(binding: Binding, layer: op.Linear) -> int:
    """How many products each number is a sum of that a linear layer makes."""
    shape = _shape(binding, layer.data)
    if layer.axes is None:
        return shape[-1]
    summed = (label not in layer.axes.result for label in layer.axes.first)
    return math.prod(size for size, is_summed in zip(shape, summed) if is_summed)


def _shape(binding: Binding, value: Value) -> tuple[int, ...]:
    shape = binding.shape(value)
    if shape is None:
        raise InputError(f"the shape of {value.name!r} cannot be told")
    return shape


def _number_or_content(binding: Binding, sink: Value | float) -> Array:
    return np.asarray(sink) if isinstance(sink, float) else _content(binding, sink)


def _content(binding: Binding, value: Value) -> Array:
    (content,) = binding.run([value], {})
    return content
