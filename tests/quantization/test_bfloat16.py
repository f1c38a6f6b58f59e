"""bfloat16 models, which ONNX Runtime's CPU provider cannot run: read and verified in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

import mla_opt
from mla_opt.graphs.onnx.widening import uses_bfloat16, widen
from tests.graphs.latent_block import Block, build
from tests.quantization.checks import check_verified

BLOCK = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, q_lora=32)
KIND = ir.DataType.BFLOAT16


def in_bfloat16(block: Block) -> onnx.ModelProto:
    """The model of a block with every float32 in it replaced."""
    model = ir.from_proto(build(block))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = KIND
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            stored = tensor.numpy().astype(KIND.numpy())
            value.dtype, value.const_value = KIND, ir.Tensor(stored, name=value.name)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == TensorProto.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", TensorProto.BFLOAT16)
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = KIND
    return ir.to_proto(model)


@pytest.mark.parametrize("cache", ["latent", "expanded"])
def test_it_is_rewritten_and_verified(cache: Any) -> None:
    block = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, cache=cache)
    report = check_verified(in_bfloat16(block))
    assert report.verification is not None
    assert report.verification["drift"]["problems"]
    (site,) = report.sites
    assert site.dtype == "bfloat16"


def test_the_result_is_bfloat16() -> None:
    model = mla_opt.optimize(in_bfloat16(BLOCK), verify=False).model
    kinds = {value.dtype for value in model.graph.initializers.values()}
    assert KIND in kinds
    assert ir.DataType.FLOAT not in kinds


def test_a_scale_is_held_more_exactly_than_bfloat16_holds_it() -> None:
    """0.37 rounds by 4e-4, which would be seen in the outputs."""
    check_verified(in_bfloat16(BLOCK), absorb="none", controlled=False)


def test_widening_keeps_every_number() -> None:
    model = ir.from_proto(in_bfloat16(BLOCK))
    before = {name: v.const_value for name, v in model.graph.initializers.items()}
    assert uses_bfloat16(model)
    widen(model)
    assert not uses_bfloat16(model)
    for name, tensor in before.items():
        after = model.graph.initializers[name].const_value
        assert tensor is not None
        assert after is not None
        same = tensor.numpy().astype(np.float64) == after.numpy().astype(np.float64)
        assert same.all()
