"""Whether what masks an attention is: no key after the query, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.masks.decisions import truth
from mla_opt.graphs.onnx.packing.masks.elements import Element, UnreadMaskError
from mla_opt.graphs.onnx.packing.masks.order import Case
from mla_opt.graphs.onnx.packing.masks.reader import Lengths, MaskReader
from mla_opt.sites import AttentionCore, BiasTerm

FORBIDS = -1e4
"""A score that this is added to has no weight: what models write at least, and float16 can hold."""


def why_not_causal(graph: OnnxGraph, core: AttentionCore) -> str:
    """Say why an attention is not causal in a sequence by itself; empty where it is.

    Each query has to see all keys up to its own, as they are, and none behind.
    """
    seen, hidden = (MaskReader.of(graph, Case(when)) for when in ("not after", "after"))
    lengths = _lengths(seen, core)
    for term in core.bias:
        told = _level(seen, term, lengths)
        if isinstance(told, str):
            return told
        if told != 0.0:
            return f"{_name(term)} adds {told:g} to scores of keys that a query sees"
    if core.causal:
        return ""
    levels = [_level(hidden, term, lengths) for term in core.bias]
    if any(isinstance(level, float) and level <= FORBIDS for level in levels):
        return ""
    reasons = [level for level in levels if isinstance(level, str)]
    return reasons[0] if reasons else "its queries see keys behind their own"


def _lengths(reader: MaskReader, core: AttentionCore) -> Lengths:
    """How long the axes of the scores are, by what is multiplied."""
    if core.layouts is None:
        return {}
    assert isinstance(core.query, ir.Value) and isinstance(core.key, ir.Value)
    return {
        "batch": 1,
        "query": reader.length(core.query, core.layouts.query, "query"),
        "key": reader.length(core.key, core.layouts.key, "key"),
    }


def _level(reader: MaskReader, term: BiasTerm, lengths: Lengths) -> float | str:
    """What a mask adds to a score; in words, where that cannot be told."""
    value = term.value
    assert isinstance(value, ir.Value)
    try:
        element = reader.of_scores(value, term.layout, lengths)
        if _is_truth(reader.graph, term):
            allowed = truth(element) != (term.kind == "blocked")
            return 0.0 if allowed else float(term.fill)
    except UnreadMaskError as error:
        return f"{_name(term)} is not followed: {error}"
    return _number(element, term)


def _is_truth(graph: OnnxGraph, term: BiasTerm) -> bool:
    value = term.value
    assert isinstance(value, ir.Value)
    return term.kind in ("boolean", "blocked") or (
        term.kind == "either" and graph.dtype(value) == np.bool_
    )


def _number(element: Element, term: BiasTerm) -> float | str:
    if isinstance(element, bool | int | float):
        return float(element) * term.factor
    return f"{_name(term)} adds a number that depends on places"


def _name(term: BiasTerm) -> str:
    return f"the mask {term.value.name!r}"
