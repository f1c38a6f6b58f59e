"""The model that comes along with its mask the other way round: true where there is padding."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from mla_opt.models import demo_model


def turned(path: Path) -> Path:
    """Write it there; all else is that of `demo_model`."""
    model = onnx.load(demo_model())
    (mask,) = (each for each in model.graph.input if each.name == "attention_mask")
    sizes = [dim.dim_param for dim in mask.type.tensor_type.shape.dim]
    for node in model.graph.node:
        node.input[:] = ["as_it_was" if name == mask.name else name for name in node.input]
    mask.CopyFrom(helper.make_tensor_value_info("key_padding_mask", TensorProto.BOOL, sizes))
    turning = [
        helper.make_node("Not", ["key_padding_mask"], ["unpadded"]),
        helper.make_node("Cast", ["unpadded"], ["as_it_was"], to=TensorProto.INT64),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*turning, *rest])
    onnx.save(model, path)
    return path
