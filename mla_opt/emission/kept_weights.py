"""W_UK and W_UV in the bits that a model has them in, as the operator that holds them takes them.

kv_b [H (N + V), C]      as it is stored, all of it
kv_b times factors [C]   of each number of c_kv in front of the layer, or of its columns
W_UK and W_UV apart      two stored matrices, each with factors of its own, if it has any
floats                   16 bits where each number is one of those, else those of the query
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Array
from mla_opt.operator.kv_b import PLAIN, AnyArray, KvB, by_heads
from mla_opt.sites import LatentWeights

_NARROW = (np.float16, ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """``kv_b``, and the factors ``[2, C]`` of its columns in W_UK and in W_UV, or ``None``."""

    kv_b: KvB
    factors: Array | None = None

    def operands(self) -> dict[str, AnyArray]:
        """Return the tensors by the names of the operator's inputs."""
        stored = self.kv_b.operands()
        return stored if self.factors is None else {**stored, "kv_b_factors": self.factors}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.operands().values())


def kept_weights(graph: Graph, weights: LatentWeights, dtype: np.dtype) -> KeptWeights:
    """Return the matrices of a site in the bits that the graph has them in.

    Numbers that it has in no fewer bits are kept in ``dtype``, the query's.
    """
    rows = weights.rows
    stored = graph.stored_rows(rows)
    if stored is not None:
        return KeptWeights(stored)
    rows = rows.astype(dtype, copy=False)
    if not graph.has_content():
        return KeptWeights(KvB(PLAIN, rows))
    kept = _in_16_bits(rows) or graph.scaled_rows(rows)
    if kept is not None:
        return KeptWeights(kept)
    found = _whole_with_factors(graph, rows) or _apart(graph, weights, dtype)
    return KeptWeights(KvB(PLAIN, rows)) if found is None else found


def _whole_with_factors(graph: Graph, rows: Array) -> KeptWeights | None:
    """All rows of one stored matrix, their columns times the same factors."""
    found = graph.factored_rows(rows)
    if found is None:
        return None
    kept, factors = found
    return KeptWeights(kept.of_single_rows.sharing_rows(), _pair(factors, factors))


def _apart(graph: Graph, weights: LatentWeights, dtype: np.dtype) -> KeptWeights | None:
    """W_UK and W_UV each from a matrix of its own; ``None`` unless both are, and stored alike."""
    heads, nope, columns = weights.w_uk.shape
    if nope == 0:
        return None
    halves = weights.by_head[:, :nope], weights.by_head[:, nope:]
    found = []
    for half in halves:
        of_half = _with_or_without_factors(graph, half.reshape(-1, columns).astype(dtype))
        if of_half is None:
            return None
        found.append(of_half)
    (of_keys, key_factors), (of_values, value_factors) = found
    kept = by_heads(of_keys, of_values, heads)
    if kept is None:
        return None
    if key_factors is None and value_factors is None:
        return KeptWeights(kept)
    return KeptWeights(
        kept, _pair(_or_ones(key_factors, columns), _or_ones(value_factors, columns))
    )


def _with_or_without_factors(graph: Graph, rows: Array) -> tuple[KvB, Array | None] | None:
    plain = graph.stored_rows(rows) or graph.scaled_rows(rows)
    return (plain, None) if plain is not None else graph.factored_rows(rows)


def _or_ones(factors: Array | None, columns: int) -> Array:
    return np.ones(columns) if factors is None else factors


def _pair(of_keys: Array, of_values: Array) -> Array:
    pair: Array = np.stack([of_keys, of_values]).astype(np.float32)
    return pair


def _in_16_bits(rows: Array) -> KvB | None:
    """The rows in a narrower float type that holds each number, if there is one."""
    for narrow in _NARROW:
        if np.dtype(narrow).itemsize >= rows.dtype.itemsize:
            continue
        if _same(rows[:1], narrow) is not None:  # few numbers tell of most rows that they are wide
            short = _same(rows, narrow)
            if short is not None:
                return KvB(PLAIN, short)
    return None


def _same(rows: Array, narrow: type) -> Array | None:
    with np.errstate(over="ignore"):
        short: Array = rows.astype(narrow)
    return short if (short.astype(rows.dtype) == rows).all() else None
