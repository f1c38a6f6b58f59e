"""Small changes of a model that keep it a message: what a damaged or hostile file looks like.

Bytes changed at random hardly ever parse. These change what the parser hands on: nodes, attributes,
operands, sizes, types, names and stored numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

Mutation = Callable[[onnx.ModelProto, random.Random], None]

NUMBERS = (0, 1, -1, 2, 3, 7, -3, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, -(1 << 63))
OPERATORS = (
    "Identity", "MatMul", "Add", "Mul", "Reshape", "Transpose", "Concat", "Slice", "Gather",
    "Expand", "Softmax", "Unsqueeze", "Squeeze", "Cast", "Shape", "Where", "ScatterND", "Split",
    "Attention", "Loop", "If", "Tile", "Pad", "ConstantOfShape", "Range", "ReduceSum", "Einsum",
)  # fmt: skip


def mutate(model: onnx.ModelProto, draw: random.Random) -> None:
    """Change a model in one to four ways."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice(MUTATIONS)(model, draw)


def _node(model: onnx.ModelProto, draw: random.Random) -> onnx.NodeProto | None:
    return draw.choice(model.graph.node) if model.graph.node else None


def _names(model: onnx.ModelProto) -> list[str]:
    """Names of values that there are, and some that there are not."""
    graph = model.graph
    made = [name for node in graph.node for name in node.output]
    stored = [each.name for each in graph.initializer]
    return [*made, *stored, *(each.name for each in graph.input), "", "nobody"]


def drop_node(model: onnx.ModelProto, draw: random.Random) -> None:
    if model.graph.node:
        del model.graph.node[draw.randrange(len(model.graph.node))]


def repeat_node(model: onnx.ModelProto, draw: random.Random) -> None:
    if (node := _node(model, draw)) is not None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if draw.random() < 0.8:
            for index, name in enumerate(copy.output):
                copy.output[index] = f"{name}/again"
        model.graph.node.insert(draw.randrange(len(model.graph.node) + 1), copy)


def swap_nodes(model: onnx.ModelProto, draw: random.Random) -> None:
    nodes = list(model.graph.node)
    draw.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def change_operator(model: onnx.ModelProto, draw: random.Random) -> None:
    if (node := _node(model, draw)) is not None:
        node.op_type = draw.choice(OPERATORS)


def change_operand(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    if node is not None and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(_names(model))


def change_operand_count(model: onnx.ModelProto, draw: random.Random) -> None:
    if (node := _node(model, draw)) is None:
        return
    if node.input and draw.random() < 0.5:
        del node.input[-1]
    else:
        node.input.append(draw.choice(_names(model)))


def change_result(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    if node is not None and node.output:
        node.output[draw.randrange(len(node.output))] = draw.choice(_names(model))


def put_between(model: onnx.ModelProto, draw: random.Random) -> None:
    """One more operator of one operand on the way to a node."""
    node = _node(model, draw)
    if node is None or not node.input:
        return
    place = draw.randrange(len(node.input))
    kind = draw.choice(("Identity", "Neg", "Relu", "Transpose", "Shape", "Softmax", "Exp", "Not"))
    made = f"between_{draw.randrange(10**6)}"
    model.graph.node.append(onnx.helper.make_node(kind, [node.input[place]], [made]))
    node.input[place] = made


def change_attribute(model: onnx.ModelProto, draw: random.Random) -> None:
    node = _node(model, draw)
    if node is None or not node.attribute:
        return
    attribute = draw.choice(node.attribute)
    how = draw.randrange(5)
    if how == 0:
        node.attribute.remove(attribute)
    elif how == 1:
        attribute.type = draw.choice((AttributeProto.INT, AttributeProto.FLOATS, 0))
    elif how == 2:
        attribute.i = draw.choice(NUMBERS)
    elif how == 3 and attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(NUMBERS)
    else:
        attribute.f = draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))


def change_size(model: onnx.ModelProto, draw: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    if dims:
        dim = draw.choice(dims)
        if draw.random() < 0.4:
            dim.dim_param = draw.choice(("B", "S", "P", "T", "", "P + S", "S-", "é"))
        else:
            dim.dim_value = draw.choice(NUMBERS)


def change_type(model: onnx.ModelProto, draw: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output]
    if values:
        draw.choice(values).type.tensor_type.elem_type = draw.randrange(24)


def change_tensor(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = draw.choice(model.graph.initializer)
    how = draw.randrange(5)
    if how == 0:
        tensor.data_type = draw.randrange(24)
    elif how == 1 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(NUMBERS)
    elif how == 2 and len(tensor.dims) > 1:
        dims = list(tensor.dims)
        draw.shuffle(dims)
        del tensor.dims[:]
        tensor.dims.extend(dims)
    elif how == 3:
        model.graph.initializer.remove(tensor)
    else:
        change_numbers(tensor, draw)


def change_numbers(tensor: TensorProto, draw: random.Random) -> None:
    """Other numbers in a stored tensor: axes that no longer fit, weights that are NaN."""
    try:
        array = numpy_helper.to_array(tensor).copy()
    except Exception:
        return  # damaged before
    if not array.size or array.dtype.kind not in "fi":
        return
    flat = array.reshape(-1)
    special = NUMBERS if array.dtype.kind == "i" else (0.0, -1.0, np.nan, np.inf, 1e30)
    info = np.iinfo(array.dtype) if array.dtype.kind == "i" else None
    number = draw.choice(special)
    if info is None or info.min <= number <= info.max:
        flat[draw.randrange(array.size)] = number
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def change_interface(model: onnx.ModelProto, draw: random.Random) -> None:
    graph = model.graph
    how = draw.randrange(4)
    if how == 0 and graph.input:
        del graph.input[draw.randrange(len(graph.input))]
    elif how == 1 and graph.output:
        del graph.output[draw.randrange(len(graph.output))]
    elif how == 2:
        graph.output.add(name=draw.choice(_names(model)))
    elif graph.input:
        graph.output.append(draw.choice(graph.input))


def change_opset(model: onnx.ModelProto, draw: random.Random) -> None:
    for entry in model.opset_import:
        entry.version = draw.choice((13, 14, 17, 18, 20, 22, 23, 24, 25, 0, 1 << 40))


MUTATIONS: tuple[Mutation, ...] = (
    drop_node, repeat_node, swap_nodes, change_operator, change_operand, change_operand,
    change_operand_count, change_result, put_between, put_between, change_attribute,
    change_attribute, change_size, change_size, change_type, change_tensor, change_tensor,
    change_interface, change_opset,
)  # fmt: skip
