from __future__ import annotations

import onnx_ir as ir
import pytest

from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.write_cache_in_place import WriteCacheInPlace
from tests.graphs.latent_block import Block, build
from tests.labels import label
from tests.passes.harness import assert_generates_same, assert_same, lines, prepared, run

FUSED = ("absorb_weights", "release_shapes", "fuse_cache_append", "add_prefill_branch")


def lowered(block: Block, *, mode="keep", prefill="auto", absorb="factored"):
    steps = [CompressCache(mode), *FUSED]
    if mode == "static":
        steps.append(WriteCacheInPlace())
    graph = prepared(block, *steps, prefill=prefill, absorb=absorb)
    (result,) = run(graph, "lower_to_standard_ops")
    return graph, result


def every_domain(model: ir.Model) -> set[str]:
    return {node.domain for node in model.graph.all_nodes()}


@pytest.mark.parametrize("prefill", ["auto", "absorbed", "expanded"])
def test_only_standard_operators_are_left(prefill):
    graph, result = lowered(Block(layers=2), prefill=prefill)
    assert (result.matched, result.rewritten) == (2, 2)
    assert every_domain(graph.model) == {""}
    assert dict(graph.model.opset_imports) == {"": 18}
    assert graph.model.functions == {}


def test_the_file_stays_as_readable_as_it_was():
    graph, _ = lowered(Block())
    assert graph.model.ir_version == 8


def test_the_interface_is_kept():
    graph, _ = lowered(Block())
    before = build(Block()).graph
    inputs, outputs = graph.model.graph.inputs, graph.model.graph.outputs
    assert [each.name for each in inputs] == [each.name for each in before.input]
    assert [each.name for each in outputs] == [each.name for each in before.output]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": "both", "sink": True},
        {"rope": 0, "bias": "boolean"},
        {"opset": 14, "bias": "blocked"},
        {"opset": 23, "core": "fused"},
        {"layers": 2, "share": True},
    ],
    ids=label,
)
def test_numbers(options):
    block = Block(**options)
    graph, _ = lowered(block)
    run(graph, "clean_up")
    assert_same(block, graph.model, sizes=((2, 1, 9), (1, 30, 5)))


@pytest.mark.parametrize("mode", ["packed", "static"])
def test_numbers_call_by_call(mode):
    block = Block(layers=2)
    graph, _ = lowered(block, mode=mode, prefill="absorbed")
    assert_generates_same(block, graph.model)


def test_functions_of_others_are_left_alone():
    graph = prepared(Block(), "compress_cache", *FUSED)
    given = ir.Value(name="x")
    inner = ir.node("Identity", [given])
    body = ir.Graph([given], inner.outputs, nodes=[inner], opset_imports={"": 18})
    other = ir.Function("other", "Same", "", graph=body, attributes=[])
    graph.model.functions[other.identifier()] = other
    graph.model.opset_imports["other"] = 1
    hidden = graph.returned()[-1]
    call = ir.node("Same", [hidden], domain="other", name="call")
    call.outputs[0].name, call.outputs[0].shape = "same", hidden.shape
    call.outputs[0].dtype = hidden.dtype
    graph.model.graph.append(call)
    graph.model.graph.outputs.append(call.outputs[0])
    run(graph, "lower_to_standard_ops")
    assert list(graph.model.functions) == [other.identifier()]
    assert every_domain(graph.model) == {"", "other"}


def test_a_model_without_the_operator_is_left():
    graph = prepared(Block(), "compress_cache")
    before = lines(graph.model)
    run(graph, "lower_to_standard_ops")
    assert lines(graph.model) == before
