"""The matrices that are read off a graph are those that it was written with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.matching.extraction import extract
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.sites import LatentAttentionSite
from tests.graphs.latent_block import Block, Tape
from tests.labels import label
from tests.passes.harness import EXTRACT, graph_of, run, value


def site(block: Block) -> LatentAttentionSite:
    graph = graph_of(block)
    *_, result = run(graph, *EXTRACT)
    assert not result.refusals, result.refusals
    (found,) = graph.sites
    return found


def written(block: Block) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """W_UK [H, N, C] and W_UV [H, C, V] as the block writes them."""
    width = block.heads * (block.nope + block.value)
    whole = Tape(block).numbers("kv_b_proj.weight", block.latent, width)
    if block.storage == "dequantized":
        whole = np.clip(whole * 60, -127, 127).astype(np.int8) * np.float32(1 / 60)
    parts = whole.reshape(block.latent, block.heads, block.nope + block.value)
    return parts[..., : block.nope].transpose(1, 2, 0), parts[..., block.nope :].transpose(1, 0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "expanded"},
        {"cache": "none"},
        {"keys": "scatter"},
        {"keys": "scatter", "cache": "expanded"},
        {"storage": "dequantized"},
        {"storage": "transposed"},
        {"row_rank": 3},
        {"rope": 0},
        {"core": "fused", "opset": 23},
        {"batch": 1, "query_len": 1},
        {"batch": 2, "query_len": 4, "past_len": 8},
        {"dtype": "float16"},
    ],
    ids=label,
)
def test_matrices_are_those_written(options):
    block = Block(**options)
    weights = site(block).weights
    w_uk, w_uv = written(block)
    np.testing.assert_allclose(weights.w_uk, w_uk, rtol=1e-6)
    np.testing.assert_allclose(weights.w_uv, w_uv, rtol=1e-6)
    assert weights.value_bias is None
    assert weights.key_scale == 1.0
    assert weights.nope_dims == tuple(range(block.nope))
    assert weights.rope_dims == tuple(range(block.nope, block.width))


ORDERS = {
    "rope first": (*range(4, 12), *range(4)),
    "reversed": tuple(reversed(range(12))),
    "interleaved": (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("cache", ["latent", "expanded"])
def test_dims_may_come_in_any_order(order, cache):
    block = Block(order=order, cache=cache)
    weights = site(block).weights
    place = np.asarray(order)
    assert weights.rope_dims == tuple(place[block.nope :])
    assert weights.nope_dims == tuple(sorted(place[: block.nope]))
    rows = np.argsort(place[: block.nope])
    np.testing.assert_allclose(weights.w_uk, written(block)[0][:, rows], rtol=1e-6)


def test_a_factor_on_the_keys_belongs_to_the_scale():
    found = site(Block(scale_on="key_heads"))
    assert found.weights.key_scale == pytest.approx(0.37)
    assert found.scale == pytest.approx(0.37)
    np.testing.assert_allclose(found.weights.w_uk, written(Block())[0], rtol=1e-5)


def test_a_factor_on_the_shared_part_alone():
    """As YaRN may scale k_pe: the matrices take up what the other dims lack."""
    double = {"key_rope": lambda tape, value: tape("Mul", value, tape.scalar(2.0))}
    found = site(Block(edits=double))
    assert found.weights.key_scale == pytest.approx(2.0)
    assert found.scale == pytest.approx(0.74)
    np.testing.assert_allclose(found.weights.w_uk, written(Block())[0] / 2, rtol=1e-5)


def test_a_factor_on_the_values():
    halved = {"value": lambda tape, value: tape("Div", value, tape.scalar(2.0))}
    np.testing.assert_allclose(
        site(Block(edits=halved)).weights.w_uv, written(Block())[1] / 2, rtol=1e-5
    )


@pytest.mark.parametrize("cache", ["latent", "expanded"])
def test_a_bias_of_the_values(cache):
    block = Block(value_bias=True, cache=cache)
    offset = Tape(block).numbers("kv_b_proj.bias", block.heads, block.nope + block.value)
    weights = site(block).weights
    np.testing.assert_allclose(weights.value_bias, offset[:, block.nope :], atol=1e-6)
    np.testing.assert_allclose(weights.w_uv, written(block)[1], atol=1e-5)


def test_padded_values_are_zero_columns():
    """Exporters pad values to the width of keys, for kernels that want them equal."""

    def padded(tape: Tape, value: str) -> str:
        return tape("Pad", value, tape.ints(0, 0, 0, 0, 0, 0, 0, 2))

    def cut(tape: Tape, value: str) -> str:
        return tape("Slice", value, tape.ints(0), tape.ints(6), tape.ints(3))

    weights = site(Block(edits={"value": padded, "context": cut})).weights
    assert weights.w_uv.shape == (3, 12, 8)
    assert not weights.w_uv[:, :, 6:].any()


def test_wide_layers_need_more_than_one_digit_of_labels():
    """132 columns: more than the digits that half precision holds exactly."""
    block = Block(heads=8, nope=10, value=7, dtype="float16")
    w_uk, w_uv = written(block)
    weights = site(block).weights
    np.testing.assert_array_equal(weights.w_uk, w_uk)
    np.testing.assert_array_equal(weights.w_uv, w_uv)


def test_geometry_is_read_off_the_graph():
    geometry = site(Block()).geometry
    assert str(geometry) == "H=3 N=8 R=4 V=6 C=12 Q=14 E=20"
    assert site(Block(q_lora=None, rope=0)).geometry.q_lora_rank is None


# What the walk keeps from happening, and extraction would notice all the same


def found(block: Block) -> tuple[OnnxGraph, LatentAttentionSite]:
    graph = graph_of(block)
    run(graph, "find_latent_attention")
    return graph, graph.sites[0]


def test_values_that_depend_on_the_shared_row():
    graph, site = found(Block(core="fused", opset=23))
    layouts = replace(site.core.layouts, value=site.core.layouts.key)
    site.core = replace(site.core, value=site.core.key, layouts=layouts)
    with pytest.raises(NotLatentError, match="the values depend on k_pe") as error:
        extract(graph, site)
    assert error.value.code == "rope_in_values"


def test_a_row_whose_shape_is_unknown():
    def kept(tape: Tape, row: str) -> str:
        keep = tape.input("keep", ("S",), TensorProto.BOOL)
        tape("Compress", row, keep, name="some_rows", axis=2)
        return row

    graph, site = found(Block(edits={"k_pe": kept}))
    site.rope = value(graph.model, "some_rows")
    with pytest.raises(NotLatentError, match="the shape of some_rows") as error:
        extract(graph, site)
    assert error.value.code == "unknown_shape"


def test_half_of_the_shared_row_is_not_enough():
    """The heads hold a part of what is cached: the rest would be cached for nothing."""

    def first_half(tape: Tape, row: str) -> str:
        return tape("Slice", row, tape.ints(0), tape.ints(2), tape.ints(3))

    def shorter(tape: Tape, query: str) -> str:
        return tape("Slice", query, tape.ints(0), tape.ints(10), tape.ints(3))

    graph, site = found(Block(edits={"key_rope": first_half, "query": shorter}))
    with pytest.raises(NotLatentError, match="the whole of k_pe") as error:
        extract(graph, site)
    assert error.value.code == "rope_mixed"
