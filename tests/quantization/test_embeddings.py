"""Operators that shape inference does not know: quantized embeddings, and any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import mla_opt
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.graphs.latent_block import Block, build
from tests.quantization.checks import check_verified
from tests.verify import toys


def with_embedding(bits: int, packed: bool) -> onnx.ModelProto:
    """The toy language model, its embedding stored in blocks of 16."""
    model = toys.original()
    (gather,) = [n for n in model.graph.node if n.op_type == "Gather" and "input_ids" in n.input[1]]
    ((place, tensor),) = [
        (at, t) for at, t in enumerate(model.graph.initializer) if t.name == gather.input[0]
    ]
    table = numpy_helper.to_array(tensor)
    width = -table.shape[1] % 16 + table.shape[1]
    padded = np.pad(table, ((0, 0), (0, width - table.shape[1])))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    blocks = padded.reshape(len(table), -1, 16)
    scales = np.maximum(np.abs(blocks).max(axis=2) / high, 1e-6).astype(np.float32)
    numbers = np.clip(np.round(blocks / scales[:, :, None]), low, high).reshape(padded.shape)
    del model.graph.initializer[place]
    model.graph.initializer.extend(
        [_stored(numbers, bits, packed), numpy_helper.from_array(scales, "table_scales")]
    )
    made = helper.make_node(
        "GatherBlockQuantized",
        ["table_stored", gather.input[1], "table_scales"],
        ["embedded_wide"],
        domain="com.microsoft",
        block_size=16,
        gather_axis=0,
        quantize_axis=1,
        **({"bits": bits} if packed else {}),
    )
    cut = helper.make_node(
        "Split", ["embedded_wide", "table_parts"], [gather.output[0], "table_padding"], axis=-1
    )
    parts = np.asarray([table.shape[1], width - table.shape[1]], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(parts, "table_parts"))
    at = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    model.graph.node.insert(at, cut)
    model.graph.node.insert(at, made)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.ir_version = max(model.ir_version, 10)
    for imported in model.opset_import:
        imported.version = max(imported.version, 21) if imported.domain == "" else 1
    return model


def _stored(numbers: Any, bits: int, packed: bool) -> onnx.TensorProto:
    if not packed:
        kind = ir.DataType.INT4.numpy()
        return ir.serde.serialize_tensor(ir.Tensor(numbers.astype(kind), name="table_stored"))
    shifted = (numbers + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:
        shifted = shifted[:, ::2] | (shifted[:, 1::2] << 4)
    return numpy_helper.from_array(shifted, "table_stored")


@pytest.mark.parametrize(("bits", "packed"), [(4, False), (4, True), (8, True)])
def test_quantized_embeddings(bits: int, packed: bool) -> None:
    check_verified(with_embedding(bits, packed))


def with_unknown(declare: tuple[int | str, ...] | None) -> onnx.ModelProto:
    """A block behind an operator that nobody knows, which declares what it makes."""
    model = build(Block())
    (embedded,) = [each for each in model.graph.input if each.name == "inputs_embeds"]
    for node in model.graph.node:
        node.input[:] = ["embedded" if name == "inputs_embeds" else name for name in node.input]
    model.graph.node.insert(
        0, helper.make_node("Embed", ["inputs_embeds"], ["embedded"], domain="com.example")
    )
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert embedded.type.tensor_type.elem_type == TensorProto.FLOAT
    if declare is not None:
        info = helper.make_tensor_value_info("embedded", TensorProto.FLOAT, declare)
        model.graph.value_info.append(info)
    return model


def test_what_an_unknown_operator_declares_is_read() -> None:
    report = mla_opt.optimize(with_unknown(("B", "S", 20)), verify=False).report
    assert len(report.sites) == 1


@pytest.mark.parametrize("declared", [None, (2, 4, 20), ("batch", "S", 20)])
def test_numbers_left_over_from_an_example_are_not_believed(declared: Any) -> None:
    graph = OnnxGraph(ir.from_proto(with_unknown(declared)))
    (embed,) = [node for node in graph.nodes() if node.op_type == "Embed"]
    sizes = graph.sizes(embed.outputs[0])
    of_input = graph.sizes(embed.inputs[0])
    assert of_input is not None
    assert sizes is None or sizes[0] != of_input[0]
