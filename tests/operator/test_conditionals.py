"""Conditionals of portable models: none where one form is asked for, and shapes where there are."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_opt
from mla_opt.graphs.interface.dims import evaluate
from mla_opt.graphs.onnx.conditionals import declare_shapes_of_conditionals, element_type
from tests.graphs.latent_block import Block, build, feeds
from tests.labels import label

SHARED = Block(layers=2, share=True, bias="boolean")


def portable(block: Block, **options: str) -> ir.Model:
    return mla_opt.optimize(build(block), verify=False, target="portable", **options).model  # type: ignore[arg-type]


def conditionals(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == "If"]


def is_declared(value: ir.Value) -> bool:
    known = value.dtype is not None and value.shape is not None
    return known and all(isinstance(dim, int) or dim.value for dim in value.shape or ())


@pytest.mark.parametrize("cache", ["keep", "packed", "static"])
@pytest.mark.parametrize("block", [Block(), SHARED, Block(cache="expanded")], ids=label)
def test_there_are_none_where_every_call_is_absorbed(block: Block, cache: str) -> None:
    assert not conditionals(portable(block, cache=cache, prefill="absorbed"))


@pytest.mark.parametrize("options", [{}, {"cache": "packed"}, {"prefill": "expanded"}], ids=label)
@pytest.mark.parametrize("block", [Block(), SHARED, Block(dtype="float16")], ids=label)
def test_what_they_return_has_a_shape(block: Block, options: dict[str, str]) -> None:
    model = portable(block, **options)
    inner = conditionals(model)
    assert inner
    for node in inner:
        branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        for output, *made in zip(node.outputs, *(branch.outputs for branch in branches)):
            assert all(is_declared(each) for each in (output, *made))
            assert len({len(each.shape or ()) for each in (output, *made)}) == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("tokens", [3, 40])
def test_the_shapes_are_those_that_are_computed(tokens: int) -> None:
    block = Block(layers=2)
    model = portable(block)
    returned = [output for node in model.graph if node.op_type == "If" for output in node.outputs]
    model.graph.outputs.extend(returned)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    sizes = {"B": 2, "S": tokens, "P": 5, "T": 5 + tokens}
    made = session.run([each.name for each in returned], feeds(block, 2, tokens, 5))
    assert any("T" in str(output.shape) for output in returned), "what was declared is kept"
    for output, array in zip(returned, made):
        assert output.shape is not None
        dims = [dim if isinstance(dim, int) else dim.value for dim in output.shape]
        assert array.shape == tuple(evaluate(dim, sizes) for dim in dims)


def test_a_type_that_is_not_known_is_not_made_up() -> None:
    made = ir.node("Softmax", [ir.node("Unique", [ir.Value(name="x")]).outputs[0]])
    assert element_type(made.outputs[0]) is None
    cast = ir.node("Cast", [ir.Value(name="x")], {"to": ir.DataType.FLOAT16})
    assert element_type(ir.node("Neg", cast.outputs).outputs[0]) is None
    assert element_type(ir.node("Identity", cast.outputs).outputs[0]) == ir.DataType.FLOAT16


def test_sizes_on_which_branches_do_not_agree_stay_open() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["B", "S", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    once, twice = ir.node("Identity", [x]), ir.node("Concat", [x, x], {"axis": 1})
    branches = {
        name: ir.AttrGraph(name, ir.Graph([], node.outputs, nodes=[node]))
        for name, node in (("then_branch", once), ("else_branch", twice))
    }
    chosen = ir.node("If", [ir.Value(name="condition")], branches)
    graph = ir.Graph([x], chosen.outputs, nodes=[chosen], opset_imports={"": 18})
    declare_shapes_of_conditionals(ir.Model(graph, ir_version=10))
    (shape,) = (output.shape for output in chosen.outputs)
    assert shape is not None
    assert [getattr(dim, "value", dim) for dim in shape] == ["B", None, 4]
