"""``mla_opt::MatMulNBits``: what its body computes; nodes are taken over and given back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.graphs.onnx.nbits import given_back
from mla_opt.handles import Array
from mla_opt.operator.contract import DOMAIN
from mla_opt.operator.matmul_nbits import (
    NBITS_OP_TYPE,
    RUNTIME_DOMAIN,
    define_nbits,
    has_kernel,
    is_nbits,
    take_over,
)


@dataclass(frozen=True)
class Layer:
    """A stored layer, with random codes and scales that are float16 numbers."""

    inner: int = 96
    columns: int = 40
    bits: int = 4
    block_size: int = 32
    zero_points: bool = False
    bias: bool = False
    accuracy_level: int = 4
    seed: int = 0
    stored: dict[str, Array] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        rng, blocks = np.random.default_rng(self.seed), -(-self.inner // self.block_size)
        of_block, of_row = self.block_size * self.bits // 8, -(-blocks * self.bits // 8)
        scales = rng.uniform(0.005, 0.015, (self.columns, blocks)).astype(np.float16)
        self.stored["B"] = rng.integers(0, 256, (self.columns, blocks, of_block), np.uint8)
        self.stored["scales"] = scales.astype(np.float32)
        if self.zero_points:
            self.stored["zero_points"] = rng.integers(0, 256, (self.columns, of_row), np.uint8)
        if self.bias:
            self.stored["bias"] = rng.standard_normal(self.columns).astype(np.float32)

    def weights(self) -> Array:
        """[N, K] in float64, by the definition of the operator."""
        blocks = -(-self.inner // self.block_size)
        codes = _unpacked(self.stored["B"].reshape(self.columns, -1), self.bits)
        zeros: Array = np.full((self.columns, blocks), 1 << (self.bits - 1))
        if self.zero_points:
            zeros = _unpacked(self.stored["zero_points"], self.bits)[:, :blocks]
        scales = self.stored["scales"].astype(np.float64)
        each = [np.repeat(rows, self.block_size, 1) for rows in (zeros, scales)]
        numbers: Array = ((codes - each[0]) * each[1])[:, : self.inner]
        return numbers

    def times(self, rows: Array) -> Array:
        """``rows @ W.T + bias`` in float64."""
        product: Array = rows.astype(np.float64) @ self.weights().T + self.stored.get("bias", 0.0)
        return product

    def model(self, batch: str | int = "rows") -> ir.Model:
        """ONNX Runtime's operator on one input."""
        names = ("B", "scales", "zero_points", "g_idx", "bias")
        inputs = ["A", *(name if name in self.stored else "" for name in names)]
        while not inputs[-1]:
            inputs.pop()
        node = helper.make_node(
            NBITS_OP_TYPE, inputs, ["Y"], domain=RUNTIME_DOMAIN, K=self.inner, N=self.columns,
            bits=self.bits, block_size=self.block_size, accuracy_level=self.accuracy_level,
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("A", TensorProto.FLOAT, [batch, self.inner])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [batch, self.columns])],
            [numpy_helper.from_array(each, name) for name, each in self.stored.items()],
        )
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))


def _unpacked(rows: Array, bits: int) -> Array:
    if bits == 8:
        return rows.astype(np.int64)
    both = np.stack([rows & 15, rows >> 4], -1)
    return both.reshape(len(rows), -1).astype(np.int64)


def taken_over(model: ir.Model, *, narrow: bool = False) -> ir.Model:
    """A copy with this library's operator."""
    copy = model.clone()
    for node in copy.graph:
        take_over(node)
        scales = node.inputs[2]
        if narrow and scales is not None and scales.const_value is not None:
            numbers = scales.const_value.numpy().astype(np.float16)
            scales.const_value = ir.Tensor(numbers, name=scales.name)
            scales.type = ir.TensorType(ir.DataType.FLOAT16)
    define_nbits(copy)
    return copy


LAYERS = [
    Layer(),
    Layer(zero_points=True, block_size=64, inner=200),
    Layer(bits=8, bias=True, block_size=128, inner=300),
    Layer(zero_points=True, bias=True, columns=7),
    Layer(bits=8, zero_points=True, block_size=256, inner=256),
]


def run(model: ir.Model, rows: Array) -> Array:
    """Without the kernel library: by the body."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), None, ["CPUExecutionProvider"])
    (made,) = session.run(None, {"A": rows})
    result: Array = made
    return result


@pytest.mark.parametrize("narrow", [False, True], ids=["float32 scales", "float16 scales"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_its_body_is_onnx_runtimes_operator(layer: Layer, narrow: bool) -> None:
    rows = np.random.default_rng(1).standard_normal((5, layer.inner)).astype(np.float32)
    original = layer.model()
    ours = taken_over(original, narrow=narrow)
    (node,) = ours.graph
    assert (node.domain, is_nbits(node)) == (DOMAIN, True)
    np.testing.assert_array_equal(run(ours, rows), run(original, rows))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_given_back_it_is_what_it_was(layer: Layer) -> None:
    original = layer.model()
    ours = taken_over(original, narrow=True)
    back = given_back(ours)
    (node,) = back.graph
    assert (node.domain, node.op_type) == (RUNTIME_DOMAIN, NBITS_OP_TYPE)
    assert not back.functions
    assert node.attributes["accuracy_level"].as_int() == 4
    rows = np.random.default_rng(1).standard_normal((3, layer.inner)).astype(np.float32)
    np.testing.assert_array_equal(run(back, rows), run(original, rows))
    assert is_nbits(next(iter(ours.graph)))  # the model that was given is as it was
    assert given_back(original) is original


def test_what_no_release_has_written_is_given_back_all_the_same() -> None:
    """A file may hold anything under these names."""
    made = taken_over(Layer().model(), narrow=True)
    (node,) = made.graph
    stored = node.inputs[2]
    assert stored is not None
    same = ir.node("Identity", [stored])
    same.outputs[0].type = stored.type
    made.graph.insert_before(node, same)
    node.replace_input_with(2, same.outputs[0])
    rows = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    np.testing.assert_array_equal(run(given_back(made), rows), run(Layer().model(), rows))
    node.resize_inputs(1)
    (bare,) = (each for each in given_back(made).graph if each.op_type == NBITS_OP_TYPE)
    assert (bare.domain, len(bare.inputs)) == (RUNTIME_DOMAIN, 1)


@pytest.mark.parametrize("attribute", ["accuracy_level", "bits", "block_size"])
def test_attributes_that_are_no_numbers(attribute: str) -> None:
    (node,) = Layer().model().graph
    assert has_kernel(node)
    node.attributes[attribute] = ir.AttrString(attribute, "4")
    assert not has_kernel(node)


def test_defaults_are_written_out() -> None:
    """A kernel sees no default of a function body."""
    model = Layer().model()
    (node,) = model.graph
    del node.attributes["bits"]
    del node.attributes["accuracy_level"]
    take_over(node)
    assert {name: each.as_int() for name, each in node.attributes.items()} == {
        "K": 96, "N": 40, "bits": 4, "block_size": 32, "accuracy_level": 0,
    }  # fmt: skip
