"""A certificate shows whatever is wrong with a site: each test breaks one thing that holds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.matching.certificate import certify
from mla_opt.matching.rounding import MOST, UNIT_ROUNDOFF, coarsest, of_sums
from mla_opt.sites import LatentAttentionSite, LatentWeights
from tests.graphs.latent_block import Block
from tests.labels import label
from tests.passes.harness import EXTRACT, graph_of, run

VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": "expanded"},
    {"cache": "none"},
    {"bias": "boolean"},
    {"bias": "blocked"},
    {"bias": "both"},
    {"bias": "computed"},
    {"sink": True},
    {"sink": True, "guarded": True},
    {"core": "fused", "opset": 23},
    {"core": "fused", "opset": 23, "bias": None, "causal": True, "cache": "none"},
    {"value_bias": True},
    {"scale_on": "key_heads"},
    {"keys": "scatter", "order": tuple(reversed(range(12)))},
]


def extracted(**options: Any) -> tuple[OnnxGraph, LatentAttentionSite]:
    graph = _extracted(tuple(options.items()))
    return graph, copy.copy(graph.sites[0])


@functools.cache
def _extracted(options: tuple[tuple[str, Any], ...]) -> OnnxGraph:
    graph = graph_of(Block(**dict(options)))
    run(graph, *EXTRACT)
    assert len(graph.sites) == 1
    return graph


@pytest.mark.parametrize("options", VARIANTS, ids=label)
def test_holds(options):
    graph, site = extracted(**options)
    certificate = certify(graph, site, site.weights)
    assert certificate.holds
    assert 0 <= certificate.error < certificate.tolerance / 1.2
    assert certificate.error == site.certificate_error


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float32", 3e-7, 4e-6), ("float16", 3e-3, 2e-2)],
)
def test_rounding_is_tolerated_by_type_and_length_of_sums(dtype, least, most):
    graph, site = extracted(dtype=dtype)
    certificate = certify(graph, site, site.weights)
    assert certificate.holds
    assert least < certificate.region[1] <= certificate.attention[1] <= most


@pytest.mark.parametrize("kind", UNIT_ROUNDOFF)
def test_longer_sums_may_be_farther_off(kind):
    short, longer = of_sums(kind, 16), of_sums(kind, 512)
    assert UNIT_ROUNDOFF[kind] < short <= longer <= MOST
    assert of_sums(kind, 256, 256) == longer


def test_sums_in_float32_are_as_far_off_as_is_tolerated():
    """What is tolerated is neither far more than what rounding does, nor less."""
    rng = np.random.default_rng(7)
    rows, matrix = rng.standard_normal((64, 512)), rng.standard_normal((512, 64))
    total = np.zeros((64, 64), np.float32)
    for row, column in zip(rows.T.astype(np.float32), matrix.astype(np.float32)):
        total += row[:, None] * column
    exact = rows.astype(np.float32).astype(float) @ matrix.astype(np.float32).astype(float)
    error = np.abs(total - exact).max() / np.abs(exact).max()
    assert of_sums("float32", 512) / 5 < error < of_sums("float32", 512)


def test_the_coarsest_type_counts():
    assert coarsest(("float64", "int64", "float32")) == "float32"
    assert coarsest(("float32", "bfloat16", "float16")) == "bfloat16"
    assert coarsest(("bool",)) == "float32"


WEIGHTS: dict[str, Callable[[LatentWeights], LatentWeights]] = {
    "another head's W_UK": lambda w: _with(w, np.roll(w.w_uk, 1, axis=0), w.w_uv),
    "another head's W_UV": lambda w: _with(w, w.w_uk, np.roll(w.w_uv, 1, axis=0)),
    "one wrong entry of W_UK": lambda w: _with(w, _touched(w.w_uk), w.w_uv),
    "one wrong entry of W_UV": lambda w: _with(w, w.w_uk, _touched(w.w_uv)),
    "rope dims swapped": lambda w: replace(w, rope_dims=w.rope_dims[::-1]),
    "rope and nope mixed": lambda w: replace(
        w, nope_dims=(*w.nope_dims[:-1], w.rope_dims[0]), rope_dims=(7, *w.rope_dims[1:])
    ),
    "a key scale": lambda w: replace(w, key_scale=1.01),
    "a value bias": lambda w: replace(w, value_bias=np.full((3, 6), 1e-3)),
    "not a number": lambda w: _with(w, w.w_uk, w.w_uv * np.nan),
}


def _with(weights: LatentWeights, w_uk: Any, w_uv: Any) -> LatentWeights:
    return replace(weights, by_head=np.concatenate([w_uk, w_uv.swapaxes(1, 2)], axis=1))


def _touched(matrix: Any) -> Any:
    matrix = matrix.copy()
    matrix[1, 2, 3] += 1e-2
    return matrix


@pytest.mark.parametrize("wrong", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("cache", ["latent", "expanded"])
def test_wrong_matrices_show(wrong, cache):
    graph, site = extracted(cache=cache)
    assert not certify(graph, site, wrong(site.weights)).holds


def _without_bias(site: LatentAttentionSite) -> None:
    site.core = replace(site.core, bias=())


def _other_kind(site: LatentAttentionSite) -> None:
    (term,) = site.core.bias
    kind = {"boolean": "blocked", "blocked": "boolean"}[term.kind]
    site.core = replace(site.core, bias=(replace(term, kind=kind),))


def _other_scale(site: LatentAttentionSite) -> None:
    site.core = replace(site.core, scale=site.core.scale * 1.01)


def _without_sink(site: LatentAttentionSite) -> None:
    site.core = replace(site.core, sink=None)


def _not_causal(site: LatentAttentionSite) -> None:
    site.core = replace(site.core, causal=not site.core.causal)


CORES = {
    "scale": (_other_scale, {}),
    "no mask": (_without_bias, {}),
    "no boolean mask": (_without_bias, {"bias": "boolean"}),
    "mask the wrong way round": (_other_kind, {"bias": "boolean"}),
    "blocked the wrong way round": (_other_kind, {"bias": "blocked"}),
    "no sink": (_without_sink, {"sink": True}),
    "causal": (_not_causal, {"core": "fused", "opset": 23, "bias": None, "cache": "none"}),
    "not causal": (
        _not_causal,
        {"core": "fused", "opset": 23, "bias": None, "cache": "none", "causal": True},
    ),
}


@pytest.mark.parametrize(("wrong", "options"), CORES.values(), ids=CORES)
def test_a_wrong_core_shows(wrong, options):
    graph, site = extracted(**options)
    wrong(site)
    try:
        assert not certify(graph, site, site.weights).holds
    except Exception as error:  # or the original cannot even be run without what is missing
        assert "must not depend on" in str(error)  # noqa: PT017


def test_a_bias_on_the_keys_drops_out():
    """It adds the same to the scores of every token."""

    def shifted(tape: Any, value: str) -> str:
        offset = tape.numbers("shift", 3, 1, 8)
        return tape("Add", value, tape.stored(offset, "shift"))

    edits = {"parts": lambda tape, parts: (shifted(tape, parts[0]), parts[1])}
    graph = graph_of(Block(edits=edits))
    *_, result = run(graph, *EXTRACT)
    assert not result.refusals
    (site,) = graph.sites
    assert site.weights.key_bias is not None
    forgotten = replace(site.weights, key_bias=None)
    assert not certify(graph, site, forgotten).holds


@pytest.mark.parametrize("head", range(3))
@pytest.mark.parametrize("part", ["w_uk", "w_uv"])
def test_keys_and_values_of_every_head_are_compared(head, part):
    """By themselves, without an attention that has a share of each."""
    graph, site = extracted(cache="latent")
    right = certify(graph, site, site.weights)
    rows = site.weights.by_head.copy()
    rows[head, 0 if part == "w_uk" else -1, 0] += 0.1
    error, tolerance = certify(graph, site, replace(site.weights, by_head=rows)).region
    assert error > 100 * tolerance
    assert right.region[0] < tolerance


def test_heads_that_are_missing_show():
    graph, site = extracted(cache="latent")
    fewer = replace(site.weights, by_head=site.weights.by_head[:2])
    with pytest.raises((ValueError, IndexError)):  # which is a refusal of the pass
        certify(graph, site, fewer)
