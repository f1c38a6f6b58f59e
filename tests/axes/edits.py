"""Small changes to a model that is written already: other readers, other projections.

Values of the plainest plans are found by what they are made of, so that a test can say what it
changes: `made_by(model, "o_proj")` is the node that multiplies with that weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.axes.feeding import Array

node = helper.make_node


def stored(model: onnx.ModelProto, name: str, content: Any) -> str:
    """Store a tensor."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(content), name))
    return name


def returned(model: onnx.ModelProto, name: str, shape: list[int | str]) -> None:
    """Return a value that is there."""
    port = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model.graph.output.append(port)


def taken(model: onnx.ModelProto, name: str, shape: list[int | str]) -> None:
    """One more input."""
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def weight(model: onnx.ModelProto, name: str) -> tuple[str, Array]:
    """A weight of the first layer: its name in the file, and its numbers."""
    full = f"model.layers.0.self_attn.{name}.weight"
    (tensor,) = (each for each in model.graph.initializer if each.name == full)
    return full, numpy_helper.to_array(tensor)


def reader(model: onnx.ModelProto, value: str, kind: str | None = None) -> NodeProto:
    """The first node that reads a value."""
    return next(
        each for each in model.graph.node if value in each.input and kind in (None, each.op_type)
    )


def maker(model: onnx.ModelProto, value: str) -> NodeProto:
    """The node that makes a value."""
    return next(each for each in model.graph.node if value in each.output)


def replaced(model: onnx.ModelProto, old: NodeProto, nodes: list[NodeProto]) -> None:
    """Other nodes in the place of one."""
    place = next(at for at, each in enumerate(model.graph.node) if each == old)
    del model.graph.node[place]
    for offset, each in enumerate(nodes):
        model.graph.node.insert(place + offset, each)


def branched(
    model: onnx.ModelProto,
    old: NodeProto,
    branches: tuple[list[NodeProto], list[NodeProto]],
    shape: list[int | str],
) -> None:
    """One of two branches in the place of a node, by what is asked; each ends in its result."""
    stored(model, "all_axes", np.array([0, 1, 2]))
    stored(model, "nothing", np.float32(0))
    graphs = [
        helper.make_graph(
            nodes,
            f"branch_{place}",
            [],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        )
        for place, nodes in enumerate(branches)
    ]
    chosen = node(
        "If", ["is_positive"], [old.output[0]], then_branch=graphs[0], else_branch=graphs[1]
    )
    asked = [
        node("ReduceSum", ["x", "all_axes"], ["total"], keepdims=0),
        node("Greater", ["total", "nothing"], ["is_positive"]),
    ]
    replaced(model, old, [*asked, chosen])


def reprojected(
    model: onnx.ModelProto, name: str, nodes: Callable[[str, str, str], list[NodeProto]]
) -> onnx.ModelProto:
    """Another way to multiply with a weight: ``nodes(source, weight, result)``."""
    full, _ = weight(model, name)
    old = reader(model, full)
    replaced(model, old, nodes(old.input[0], full, old.output[0]))
    return model
