"""Ways to damage a model, each a function that changes a message in place.

The model is `latent_block.build(Block())`: one latent attention, with a cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Damage = Callable[[onnx.ModelProto], None]

REFUSED: dict[str, Damage] = {}
"""Every command must refuse these."""

TAKEN: dict[str, Damage] = {}
"""Strange, and valid: ONNX Runtime runs them, so optimizing them must come to a result."""

ANSWERED: dict[str, Damage] = {}
"""Whether they are refused or not is left open; that there is an answer, and soon, is not."""


def _into(register: dict[str, Damage]) -> Callable[[Damage], Damage]:
    def add(damage: Damage) -> Damage:
        register[damage.__name__] = damage
        return damage

    return add


def first(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def store(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def before(model: onnx.ModelProto, place: int, *nodes: onnx.NodeProto) -> None:
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


# The graph


@_into(REFUSED)
def circle(model: onnx.ModelProto) -> None:
    softmax = first(model, "Softmax")
    before(model, 0, helper.make_node("Identity", [softmax.output[0]], ["around"]))
    model.graph.node[1].input[0] = "around"


@_into(REFUSED)
def dangling(model: onnx.ModelProto) -> None:
    first(model, "Softmax").input[0] = "nobody_makes_this"


@_into(REFUSED)
def dangling_output(model: onnx.ModelProto) -> None:
    model.graph.output.add(name="nobody_makes_this_either")


@_into(REFUSED)
def made_twice(model: onnx.ModelProto) -> None:
    node = first(model, "Softmax")
    before(model, len(model.graph.node), helper.make_node("Identity", node.input, node.output))


@_into(TAKEN)
def unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@_into(TAKEN)
def input_that_is_an_output(model: onnx.ModelProto) -> None:
    given = next(each for each in model.graph.input if each.name.startswith("past"))
    model.graph.output.append(given)


@_into(ANSWERED)
def chain(model: onnx.ModelProto) -> None:
    """Deeper than any recursion goes."""
    source, store_name = model.graph.node[0].input[0], store(model, "tiny", np.float32([0.5]))
    names = [source, *(f"chain_{index}" for index in range(1200))]
    nodes = [helper.make_node("Mul", [a, store_name], [b]) for a, b in itertools.pairwise(names)]
    before(model, 0, *nodes)
    model.graph.node[len(nodes)].input[0] = names[-1]


@_into(ANSWERED)
def nested(model: onnx.ModelProto) -> None:
    """Branches in branches, as deep as protobuf lets a message be."""
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["inner"], value_float=1.0)], "b", [], [value]
    )
    for _ in range(20):
        node = helper.make_node("If", ["yes"], ["inner"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "b", [], [value])
        if body.ByteSize() > 100_000:
            break
    store(model, "yes", np.asarray(True))
    before(model, 0, node)
    node.output[0] = "outer"
    multiplied = first(model, "MatMul")
    before(model, 1, helper.make_node("Mul", [multiplied.input[0], "outer"], ["scaled"]))
    multiplied.input[0] = "scaled"


# Operators


@_into(REFUSED)
def no_axis(model: onnx.ModelProto) -> None:
    del first(model, "Concat").attribute[:]


@_into(REFUSED)
def axis_of_another_kind(model: onnx.ModelProto) -> None:
    node = first(model, "Concat")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", 1.5))


@_into(REFUSED)
def no_operand(model: onnx.ModelProto) -> None:
    first(model, "MatMul").input[1] = ""


@_into(REFUSED)
def too_few_operands(model: onnx.ModelProto) -> None:
    del first(model, "MatMul").input[1:]


@_into(REFUSED)
def endless_loop(model: onnx.ModelProto) -> None:
    _loop(model, 1 << 62, endless=True)


@_into(ANSWERED)
def long_loop(model: onnx.ModelProto) -> None:
    _loop(model, 1 << 30, endless=True)


def _loop(model: onnx.ModelProto, trips: int, endless: bool) -> None:
    """A loop that makes a factor of the scores."""
    flag = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["a"], ["b"])],
        "body",
        [flag("i", TensorProto.INT64, []), flag("go", TensorProto.BOOL, []),
         flag("a", TensorProto.FLOAT, [])],
        [flag("on", TensorProto.BOOL, []), flag("b", TensorProto.FLOAT, [])],
    )  # fmt: skip
    store(model, "trips", np.asarray(trips, np.int64))
    store(model, "yes", np.asarray(endless))
    store(model, "one", np.asarray(1, np.float32))
    softmax = first(model, "Softmax")
    place = list(model.graph.node).index(softmax)
    before(
        model,
        place,
        helper.make_node("Loop", ["trips", "yes", "one"], ["factor"], body=body),
        helper.make_node("Mul", [softmax.input[0], "factor"], ["multiplied"]),
    )
    softmax.input[0] = "multiplied"


@_into(TAKEN)
def negative_scale(model: onnx.ModelProto) -> None:
    scale = next(each for each in model.graph.initializer if each.name.startswith("const_"))
    scale.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(scale), scale.name))


@_into(ANSWERED)
def mask_from_cached_rows(model: onnx.ModelProto) -> None:
    """What a query may see depends on what is in the cache."""
    softmax = first(model, "Softmax")
    before(
        model,
        list(model.graph.node).index(softmax),
        helper.make_node("ReduceMax", ["present.0.keys"], ["highest"], axes=[-1]),
        helper.make_node("Transpose", ["highest"], ["of_keys"], perm=[0, 1, 3, 2]),
        helper.make_node("Add", [softmax.input[0], "of_keys"], ["hidden_by_rows"]),
    )
    softmax.input[0] = "hidden_by_rows"


@_into(ANSWERED)
def rows_of_more_sequences(model: onnx.ModelProto) -> None:
    """Rows of twice as many sequences as the cache has: no sizes fit."""
    made = model.graph.node[0].output[0]
    model.graph.node[1].input[0] = "twice"
    before(model, 1, helper.make_node("Concat", [made, made], ["twice"], axis=0))


# Functions


@_into(REFUSED)
def function_that_calls_itself(model: onnx.ModelProto) -> None:
    _function(model, "again", ["again"])
    _call(model, "again")


@_into(REFUSED)
def functions_that_double(model: onnx.ModelProto) -> None:
    _function(model, "f0", [])
    for index in range(40):
        _function(model, f"f{index + 1}", [f"f{index}"] * 2)
    _call(model, "f40")


def _function(model: onnx.ModelProto, name: str, calls: list[str]) -> None:
    values = ["x", *(f"v{index}" for index in range(len(calls)))]
    nodes = [
        helper.make_node(called, [a], [b], domain="d")
        for called, a, b in zip(calls, values, values[1:])
    ]
    nodes.append(helper.make_node("Identity", [values[-1]], ["y"]))
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    model.functions.append(helper.make_function("d", name, ["x"], ["y"], nodes, opset))


def _call(model: onnx.ModelProto, name: str) -> None:
    model.opset_import.append(helper.make_opsetid("d", 1))
    softmax = first(model, "Softmax")
    place = list(model.graph.node).index(softmax)
    before(model, place, helper.make_node(name, [softmax.input[0]], ["called"], domain="d"))
    softmax.input[0] = "called"


# Tensors, types and sizes


@_into(REFUSED)
def tensor_without_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.UNDEFINED


@_into(REFUSED)
def constant_without_type(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("t", 1, [1], [1.0]))
    node.attribute[0].t.data_type = TensorProto.UNDEFINED
    before(model, 0, node)


@_into(ANSWERED)
def weight_of_texts(model: onnx.ModelProto) -> None:
    name = first(model, "MatMul").input[1]
    tensor = next(each for each in model.graph.initializer if each.name == name)
    texts = [b"x"] * math.prod(tensor.dims)
    tensor.CopyFrom(helper.make_tensor(name, TensorProto.STRING, tensor.dims, texts))


@_into(TAKEN)
def texts_beside_the_weights(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("texts", TensorProto.STRING, [2], [b"a", b"b"])
    model.graph.initializer.append(tensor)
    model.graph.output.append(helper.make_tensor_value_info("told", TensorProto.STRING, [2]))
    before(model, 0, helper.make_node("Identity", ["texts"], ["told"]))


@_into(REFUSED)
def tensor_of_2_62_elements(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 31, 1 << 31])


@_into(ANSWERED)
def input_of_2_40(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40


@_into(ANSWERED)
def input_of_2_62(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 62


@_into(ANSWERED)
def negative_dim(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -3


@_into(ANSWERED)
def filled_with_2_40(model: onnx.ModelProto) -> None:
    """A tensor of 2^40 ones that a shape is made of."""
    store(model, "size", np.asarray([1 << 40], np.int64))
    zero = helper.make_tensor("z", TensorProto.FLOAT, [1], [0.0])
    softmax = first(model, "Softmax")
    before(
        model,
        list(model.graph.node).index(softmax),
        helper.make_node("ConstantOfShape", ["size"], ["ones"], value=zero),
        helper.make_node("ReduceSum", ["ones"], ["none"], keepdims=0),
        helper.make_node("Add", [softmax.input[0], "none"], ["added"]),
    )
    softmax.input[0] = "added"


@_into(ANSWERED)
def weights_that_are_nan(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))


# Text


@_into(REFUSED)
def name_that_is_no_text(model: onnx.ModelProto) -> None:
    _spoil(model, b"Softmax", b"Softm\xd4x")


@_into(REFUSED)
def name_that_a_terminal_obeys(model: onnx.ModelProto) -> None:
    first(model, "Softmax").name = "\x1b]0;owned\x07"


@_into(REFUSED)
def metadata_that_is_no_text(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="key", value="marker")
    _spoil(model, b"marker", b"mark\xd4r")


def _spoil(model: onnx.ModelProto, old: bytes, new: bytes) -> None:
    content = model.SerializeToString().replace(old, new)
    model.Clear()
    model.ParseFromString(content)


@_into(TAKEN)
def much_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="notes", value="x" * 20_000_000)


def _integers_of_a_value(model: onnx.ModelProto, content: str) -> None:
    """Content of a value, where a library that infers shapes would note it."""
    info = helper.make_tensor_value_info(first(model, "Reshape").output[0], TensorProto.FLOAT, None)
    info.metadata_props.add(key="pkg.onnx_shape_inference.sym_data", value=content)
    model.graph.value_info.append(info)


@_into(TAKEN)
def shape_of_keys_returned(model: onnx.ModelProto) -> None:
    """An output is the shape of what is not made any more."""
    made = first(model, "Reshape").output[0]
    place = next(i for i, node in enumerate(model.graph.node) if made in node.output) + 1
    before(model, place, helper.make_node("Shape", [made], ["shape_of_keys"]))
    told = helper.make_tensor_value_info("shape_of_keys", TensorProto.INT64, [4])
    model.graph.output.append(told)


@_into(TAKEN)
def integers_that_are_no_json(model: onnx.ModelProto) -> None:
    _integers_of_a_value(model, "{")


@_into(TAKEN)
def integers_without_an_end(model: onnx.ModelProto) -> None:
    _integers_of_a_value(model, "[" * 100_000)


@_into(ANSWERED)
def metadata_of_ours(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="mla_opt.sites", value="[" * 100_000)
    model.metadata_props.add(key="mla_opt.interface", value="{}")
