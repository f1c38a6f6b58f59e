"""What the builder emits: valid nodes of the model's own opset, with names of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.errors import InputError, PassError
from mla_opt.graphs.onnx.builder import OnnxBuilder
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.graphs.latent_block import Block, feeds
from tests.passes.harness import check, compute, graph_of, value

OPSETS = (14, 15, 17, 18, 21, 23)


def emitted(
    emit: Callable[[OnnxBuilder, ir.Value], ir.Value], opset: int = 18, dtype: str = "float32"
) -> tuple[OnnxGraph, Any]:
    """Emit something about the new latent rows; returns what it computes."""
    block = Block(opset=opset, dtype=dtype)
    graph = graph_of(block)
    rows = value(graph.model, "c_kv_0")
    graph.dtype(rows)
    node = graph.producer(value(graph.model, "hidden"))
    made = emit(graph.builder(node, "test"), rows)
    made.name = "made"
    graph.model.graph.outputs.extend([made, rows])
    seen = [compute(ir.to_proto(graph.model), feeds(block))[name] for name in ("made", "c_kv_0")]
    for each, array in zip((made, rows), seen):
        each.shape = ir.Shape([None] * array.ndim)
    check(graph.model)
    return graph, tuple(seen)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_dimension(opset):
    for axis, size in enumerate((2, 1, 4, 12)):
        _, (made, _) = emitted(lambda b, rows, axis=axis: b.dimension(rows, axis), opset)
        assert made.tolist() == [size]
        assert made.dtype == np.int64


@pytest.mark.parametrize("opset", OPSETS)
def test_the_last_dimension_from_the_end(opset):
    _, (made, _) = emitted(lambda b, rows: b.dimension(rows, -1), opset)
    assert made.tolist() == [12]


@pytest.mark.parametrize("opset", OPSETS)
def test_a_row_maximum(opset):
    _, (made, rows) = emitted(lambda b, rows: b.row_maximum(rows, "top"), opset)
    np.testing.assert_array_equal(made, rows.max(-1, keepdims=True))


@pytest.mark.parametrize("opset", OPSETS)
def test_the_largest_of_a_vector(opset):
    def largest(builder: OnnxBuilder, rows: ir.Value) -> ir.Value:
        return builder.largest(builder.constant(np.array([3, 9, 4], np.int32), "some"), "top")

    _, (made, _) = emitted(largest, opset)
    assert made.tolist() == [9]


@pytest.mark.parametrize("opset", OPSETS)
def test_the_rest_of_the_vocabulary(opset):
    def chain(b: OnnxBuilder, rows: ir.Value) -> ir.Value:
        first, second = b.split(rows, (4, 8), 3, ("first", "second"))
        back = b.concat((b.slice(second, 4, 8, 3, "cut"), first), 3, "back")
        turned = b.transpose(b.gather(back, (7, 0, 3), 3, "picked"), (0, 1, 3, 2), "turned")
        flat = b.reshape(turned, b.integers(0, -1), "flat")
        wide = b.expand(b.unsqueeze(flat, 1, "column"), b.integers(1, 2, 1), "wide")
        doubled = b.multiply(wide, b.scalar_like(2.0, rows, "two"), "doubled")
        return b.softmax(b.subtract(doubled, wide, "again"), "weights")

    _, (made, rows) = emitted(chain, opset)
    back = np.concatenate([rows[..., 8:], rows[..., :4]], -1)[..., [7, 0, 3]]
    flat = back.swapaxes(2, 3).reshape(2, 1, -1).repeat(2, axis=1)
    expected = np.exp(flat) / np.exp(flat).sum(-1, keepdims=True)
    np.testing.assert_allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
def test_conditions(opset):
    def chain(b: OnnxBuilder, rows: ir.Value) -> ir.Value:
        zero = b.scalar_like(0.0, rows, "zero")
        positive = b.greater(rows, zero, "positive")
        small = b.negate(b.greater(rows, b.scalar_like(0.5, rows, "half"), "large"), "small")
        assert b.is_boolean(small)
        assert not b.is_boolean(rows)
        return b.where(b.both(positive, small, "between"), rows, zero, "kept")

    _, (made, rows) = emitted(chain, opset)
    np.testing.assert_array_equal(made, np.where((rows > 0) & (rows <= 0.5), rows, 0))


def test_a_scalar_has_the_type_of_what_it_is_for():
    _, (made, _) = emitted(
        lambda b, rows: b.multiply(rows, b.scalar_like(2.0, rows, "two"), "x"), dtype="float16"
    )
    assert made.dtype == np.float16


def test_a_type_that_is_not_known_is_not_guessed():
    graph = graph_of(Block(dtype="float16"))
    node = graph.producer(value(graph.model, "hidden"))
    with pytest.raises(PassError, match="the element type of c_kv_0 is unknown"):
        graph.builder(node, "test").scalar_like(2.0, value(graph.model, "c_kv_0"), "two")


def test_names_are_the_builders_own():
    def twice(b: OnnxBuilder, rows: ir.Value) -> ir.Value:
        first = b.add(rows, rows, "sum")
        second = b.add(first, rows, "sum")
        assert (first.name, second.name) == ("test/sum", "test/sum_2")
        return b.add(second, rows, "other")

    graph, _ = emitted(twice)
    other = graph.builder(graph.producer(value(graph.model, "hidden")), "test")
    assert other.constant(np.zeros(1, np.float32), "sum").name == "test/sum_3"


def test_integers_are_stored_once():
    graph = graph_of(Block())
    node = graph.producer(value(graph.model, "hidden"))
    one, other = graph.builder(node, "a"), graph.builder(node, "b")
    assert one.integers(1, 2) is other.integers(1, 2)
    assert one.integers(1, 2) is not one.integers(2, 1)


def test_nodes_go_in_front_of_their_place():
    graph, _ = emitted(lambda b, rows: b.add(rows, rows, "sum"))
    names = [node.name for node in graph.nodes()]
    place = names.index(graph.producer(value(graph.model, "hidden")).name)
    assert names[place - 1] == "test/sum/Add"


# Branches


def halves(builder: OnnxBuilder, rows: ir.Value) -> tuple[ir.Value, ...]:
    many = builder.greater(builder.dimension(rows, 2), builder.integers(2), "many")

    def double(inner: Any) -> tuple[ir.Value, ...]:
        twice = inner.add(rows, rows, "twice")
        return inner.multiply(twice, twice, "square"), twice

    def same(inner: Any) -> tuple[ir.Value, ...]:
        zero = inner.scalar_like(0.0, rows, "zero")
        return inner.multiply(rows, zero, "nothing"), inner.add(rows, zero, "same")

    return builder.branch(many, double, same, "choice")


@pytest.mark.parametrize("opset", OPSETS)
def test_a_branch(opset):
    block = Block(opset=opset)
    graph = graph_of(block)
    rows = value(graph.model, "c_kv_0")
    graph.dtype(rows)
    node = graph.producer(value(graph.model, "hidden"))
    square, twice = halves(graph.builder(node, "test"), rows)
    for made, name in ((square, "square"), (twice, "twice")):
        made.name = name
        made.shape = ir.Shape([None] * 4)
        graph.model.graph.outputs.append(made)
    assert square.dtype == ir.DataType.FLOAT
    proto = check(graph.model)
    many = compute(proto, feeds(block, 2, 4, 3))
    np.testing.assert_allclose(many["square"], many["twice"] ** 2)
    few = compute(proto, feeds(block, 2, 2, 3))
    assert not few["square"].any()
    assert few["twice"].any()


def test_branches_have_values_of_their_own_and_stored_tensors_of_the_graph():
    graph = graph_of(Block())
    rows = value(graph.model, "c_kv_0")
    graph.dtype(rows)
    node = graph.producer(value(graph.model, "hidden"))
    square, _ = halves(graph.builder(node, "test"), rows)
    branches = [a.as_graph() for a in square.producer().attributes.values()]
    for branch in branches:
        assert not branch.initializers
        assert not branch.inputs
        for each in branch:
            for operand in each.inputs:
                ours = operand.graph is branch
                assert ours or operand.is_initializer() or operand is rows
    names = [out.name for branch in branches for each in branch for out in each.outputs]
    assert len(names) == len(set(names))


# The fused operator


def operator(graph: OnnxGraph, name: str = "op", **more: Any) -> tuple[ir.Value, ...]:
    rows = value(graph.model, "c_kv_0")
    graph.dtype(rows)
    node = graph.producer(value(graph.model, "hidden"))
    builder = graph.builder(node, name)
    heads = builder.expand(rows, builder.integers(1, 3, 1, 1), "query")
    operands = {"query": heads, "latent": rows, **more}
    return builder.latent_attention(operands, scale=0.5, kv_lora_rank=12, causal=False, name="it")


def test_every_attribute_is_written_on_the_node():
    graph = graph_of(Block(rope=0))
    (output,) = operator(graph)
    node = output.producer()
    assert set(node.attributes) == {
        "scale",
        "kv_lora_rank",
        "causal",
        "plugin_namespace",
        "plugin_version",
    }


def test_one_function_a_signature():
    graph = graph_of(Block(rope=0))
    operator(graph, "a")
    operator(graph, "b")
    assert len(graph.model.functions) == 1
    cache = value(graph.model, "past.0.keys")
    outputs = operator(graph, "c", cache=cache)
    assert len(outputs) == 2
    assert len(graph.model.functions) == 2
    assert graph.model.opset_imports["mla_opt"] == 1


@pytest.mark.parametrize("opset", OPSETS)
def test_a_function_body_is_of_the_models_opset(opset):
    graph = graph_of(Block(rope=0, opset=opset))
    operator(graph)
    (function,) = graph.model.functions.values()
    assert function.opset_imports[""] == opset
    check(graph.model)


@pytest.mark.parametrize("opset", [13, 26])
def test_a_model_of_another_age_is_refused(opset):
    graph = graph_of(Block(rope=0))
    graph.model.opset_imports[""] = opset
    with pytest.raises(InputError, match=f"no body for opset {opset}"):
        operator(graph)


# Widening masks


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("boolean", [False, True])
def test_a_mask_is_widened(opset, boolean):
    def widened(b: OnnxBuilder, rows: ir.Value) -> ir.Value:
        mask = b.greater(rows, b.scalar_like(0.0, rows, "zero"), "m") if boolean else rows
        return b.widen_mask(mask, b.integers(15), rows, "wide")

    _, (made, rows) = emitted(widened, opset)
    assert made.shape == (2, 1, 4, 15)
    np.testing.assert_array_equal(made[..., :12], rows > 0 if boolean else rows)
    assert not made[..., 12:].any() if boolean else np.isneginf(made[..., 12:]).all()


def test_one_column_for_all_keys_is_not_widened():
    _, (made, rows) = emitted(
        lambda b, rows: b.widen_mask(b.row_maximum(rows, "top"), b.integers(15), rows, "wide")
    )
    np.testing.assert_array_equal(made, rows.max(-1, keepdims=True))
