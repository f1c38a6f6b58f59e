from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mla_opt.errors import InputError, PassError
from mla_opt.passes.choose_form import ChooseForm
from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.lower_to_tensorrt import LowerToTensorrt
from mla_opt.passes.write_cache_in_place import WriteCacheInPlace
from tests.graphs.latent_block import Block, build, feeds
from tests.labels import label
from tests.passes.harness import (
    EXTRACT,
    assert_close,
    compute,
    generate,
    graph_of,
    kinds,
    run,
)

ROWS = 16
SMALL = ((12, 4), (12, 0))
"""Widths of the blocks here; they are as if the plugin had kernels for them."""
FUSED = ("absorb_weights", "release_shapes", "fuse_cache_append")


def opset24(**options) -> Block:
    return Block(opset=24, **options)


def lowered(
    block: Block,
    phase: str = "decode",
    *,
    plugin: bool = True,
    absorb="factored",
    causal=False,
    widths=SMALL,
):
    graph = graph_of(block)
    choose = ChooseForm(absorb=absorb, in_place=True)
    run(graph, *EXTRACT, choose, CompressCache("static"), *FUSED)
    assert len(graph.sites) == block.layers
    for site in graph.sites:
        site.core = replace(site.core, causal=causal)
    if phase == "decode":
        run(graph, WriteCacheInPlace(ROWS, "shapes"))
    (result,) = run(graph, LowerToTensorrt(phase, plugin, ROWS, widths))
    run(graph, "clean_up")
    return graph, result


def assert_generates(block: Block, model, steps, tolerance: float = 1e-5) -> None:
    expected = generate(build(block), block, steps)
    for step, (seen, wanted) in enumerate(zip(generate(model, block, steps), expected)):
        assert_close(seen, wanted, tolerance, f"step {step}")


VARIANTS = [
    {},
    {"bias": None},
    {"core": "fused"},
    {"bias": "boolean"},
    {"bias": "both", "sink": True},
    {"rope": 0},
    {"value": 12},
    {"value": 14},
    {"value_bias": True},
    {"order": (*range(4, 12), *range(4))},
    {"cache": "expanded"},
    {"layers": 2},
]


@pytest.mark.parametrize("options", VARIANTS, ids=label)
@pytest.mark.parametrize("plugin", [True, False], ids=["operator", "standard"])
def test_numbers_of_decode_steps(options, plugin):
    block = opset24(**options)
    graph, _ = lowered(block, plugin=plugin)
    assert_generates(block, graph.model, (5, 1, 3))


@pytest.mark.parametrize(
    "options",
    [*VARIANTS, {"bias": "computed"}, {"bias": "computed", "mask_from": "cache"}],
    ids=label,
)
def test_numbers_of_a_prompt(options):
    block = opset24(**options)
    graph, _ = lowered(block, "prefill")
    assert_generates(block, graph.model, (7,))


def test_a_causal_operator_in_standard_operators():
    """No exporter's cache makes one; the contract has it all the same."""
    block = opset24(bias=None)
    operator, standard = (lowered(block, plugin=p, causal=True)[0].model for p in (True, False))
    free = lowered(block)[0].model
    steps = (5, 1, 3)
    for seen, wanted in zip(generate(standard, block, steps), generate(operator, block, steps)):
        assert_close(seen, wanted, 1e-5)
    assert not np.allclose(generate(free, block, (5,))[0], generate(operator, block, (5,))[0])


@pytest.mark.parametrize("plugin", [True, False], ids=["operator", "standard"])
@pytest.mark.parametrize("absorb", ["fold-q", "fold-o", "fold"])
def test_numbers_of_folded_weights(absorb, plugin):
    block = opset24()
    graph, _ = lowered(block, plugin=plugin, absorb=absorb)
    assert_generates(block, graph.model, (5, 1, 3))


def test_a_shared_cache_in_standard_operators():
    block = opset24(layers=2, share=True)
    graph, _ = lowered(block, plugin=False)
    assert_generates(block, graph.model, (5, 1, 3))
    assert kinds(graph.model)["TensorScatter"] == 1


def test_a_shared_cache_is_not_for_the_plugin():
    with pytest.raises(InputError, match="reads a cache that another attention writes"):
        lowered(opset24(layers=2, share=True))


def test_widths_that_the_plugin_has_no_kernel_for():
    block = opset24(layers=2)
    graph, result = lowered(block, widths=LowerToTensorrt.plugin_widths)
    assert kinds(graph.model)["LatentAttention"] == 0
    assert kinds(graph.model)["TensorScatter"] == 2
    (note,) = result.notes
    assert "and 1 more: the plugin has no kernel for C=12 and R=4, only for 512 and 64, 256" in note
    assert_generates(block, graph.model, (5, 1, 3))


@pytest.mark.parametrize(
    ("latent", "rope", "operators"), [(512, 64, 1), (512, 0, 1), (256, 32, 1), (512, 32, 0)]
)
def test_widths_of_released_models(latent, rope, operators):
    block = opset24(heads=8, nope=128, rope=rope, value=128, latent=latent)
    graph, result = lowered(block, widths=LowerToTensorrt.plugin_widths)
    assert kinds(graph.model)["LatentAttention"] == operators
    assert len(result.notes) == 1 - operators
    assert_generates(block, graph.model, (3, 1), 1e-4)  # random weights this wide saturate softmax


def test_the_prompt_phase_has_fused_attention_and_no_operator():
    graph, result = lowered(opset24(layers=2), "prefill")
    operators = kinds(graph.model)
    assert (operators["Attention"], operators["TensorScatter"]) == (2, 2)
    assert operators["LatentAttention"] == operators["Softmax"] == 0
    assert (result.matched, result.rewritten, result.notes) == (2, 2, ())


@pytest.mark.parametrize("options", [{"value": 14}, {"sink": True}], ids=label)
def test_what_has_no_fused_kernel_is_said(options):
    graph, result = lowered(opset24(**options), "prefill")
    assert "no fused attention for" in result.notes[0]
    assert kinds(graph.model)["Attention"] == 0


def test_keys_and_values_are_equally_wide():
    graph, _ = lowered(opset24(), "prefill")
    (attention,) = (node for node in graph.model.graph if node.op_type == "Attention")
    padded = [v for name, v in graph.model.graph.initializers.items() if "values_padded" in name]
    assert [v.shape.numpy() for v in padded] == [(12, 3 * 12)]
    assert attention.attributes["scale"].as_float() == pytest.approx(Block().scale)


def test_the_plugin_is_given_no_gaps():
    graph, result = lowered(opset24(bias=None, sink=True, core="eager"))
    (node,) = (node for node in graph.model.graph if node.op_type == "LatentAttention")
    assert len(node.inputs) == 6
    assert None not in node.inputs
    assert "a bias of zero before its sinks" in result.notes[0]


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("plugin", [True, False], ids=["operator", "standard"])
def test_no_shape_is_made_from_data(phase, plugin):
    graph, _ = lowered(opset24(cache="expanded", bias="boolean"), phase, plugin=plugin)
    shapes = [
        source
        for node in graph.model.graph
        if node.op_type in ("Reshape", "Expand", "Range", "Slice", "ConstantOfShape")
        for source in node.inputs[1:]
    ]
    assert shapes
    assert "past_len" not in {name for each in shapes for name in sources(each)}


def sources(value) -> set[str]:
    """Names of the inputs whose data a value depends on."""
    node = None if value is None else value.producer()
    if node is None:
        return set() if value is None else {value.name}
    if node.op_type == "Shape":
        return set()
    return set().union(*(sources(each) for each in node.inputs))


@pytest.mark.parametrize("mask_from", ["keys", "cache"])
def test_a_mask_made_from_the_cache_alone_is_refused(mask_from):
    with pytest.raises(InputError, match="no input is as long as past and new tokens together"):
        lowered(opset24(bias="computed", mask_from=mask_from))


def test_an_older_opset_is_refused():
    with pytest.raises(InputError, match="opset 23 on, and the model has 18"):
        lowered(Block(), "prefill")


def test_without_a_capacity():
    graph = graph_of(opset24())
    with pytest.raises(InputError, match="TensorRT needs the capacity"):
        run(graph, LowerToTensorrt())


def test_decode_needs_buffers():
    graph = graph_of(opset24())
    run(graph, *EXTRACT, ChooseForm(in_place=True), CompressCache("static"), *FUSED)
    with pytest.raises(PassError, match="run write_cache_in_place first"):
        run(graph, LowerToTensorrt("decode", True, ROWS))


def test_without_a_cache():
    graph = graph_of(opset24(cache="none"))
    run(graph, *EXTRACT, ChooseForm(in_place=True), CompressCache("static"), *FUSED)
    with pytest.raises(InputError, match="does not append to a cache of latent rows"):
        run(graph, LowerToTensorrt("prefill", True, ROWS))


@pytest.mark.parametrize("bias", ["additive", "boolean"])
def test_a_query_that_sees_nothing_gives_zeros(bias):
    block = opset24(bias=bias)
    graph, _ = lowered(block, "prefill")
    given = feeds(block, 2, 5, 0, blind=2)
    given["past.0.latent"] = np.zeros((2, 1, ROWS, 16), np.float32)
    given["past_len"] = np.zeros(2, np.int32)
    seen = compute(graph.model, given)
    assert all(np.isfinite(array).all() for array in seen.values())
