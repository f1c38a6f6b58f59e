"""The original with the weights that an optimized model was quantized to afterwards.

Quantizing changes every output by far more than an error of optimizing would, so that the original
as it is says little of such a model. What can be compared is the original with the same weights::

    original    x --> MatMul(W)         --> y
    optimized   x --> MatMulNBits(W, q) --> y
    compared    x --> MatMulNBits(W, q) --> y     in the original

A layer is known by the name of what it makes, which optimizing and quantizers leave alone, and by
doing nearly the same. Layers that the optimized model has alone, W_UK and W_UV, have none to stand
for them: if they were quantized, that shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from mla_opt.graphs.onnx.made_tensors import called
from mla_opt.graphs.onnx.nbits import given_back
from mla_opt.graphs.onnx.quantization.operators import is_quantization
from mla_opt.graphs.onnx.stored import StoredOnly
from mla_opt.handles import Array
from mla_opt.verification.onnx.twins import ACCURACY_OF_FUSED

#: How far apart two layers may be, by root mean square: 2 bits leave half of a weight.
NEARLY = 0.6
_LAYERS = frozenset({"MatMul", "Gemm"})
_ROWS = 3


def with_weights_of(original: ir.Model, optimized: ir.Model) -> tuple[ir.Model, int]:
    """A copy of the original with the quantized layers of the other, and how many those are."""
    copy, stored, optimized = original.clone(), StoredOnly(), given_back(optimized)
    same = copy.opset_imports.get("") == optimized.opset_imports.get("")
    kinds = _LAYERS if same else frozenset({"MatMul"})
    layers = {node.outputs[0].name: node for node in _quantized_layers(optimized, stored)}
    graft = _Graft(copy)
    count = 0
    for node in tuple(copy.graph):
        other = layers.get(node.outputs[0].name) if node.op_type in kinds else None
        if other is None or node.inputs[0] is None or not _is_nearly(node, other, optimized):
            continue
        if same:
            graft.replace(node, other)
        else:  # the original's opset may not have what the other is made of
            _store_numbers(node, _run(other, np.eye(_width(node), dtype=_type_of(node)), optimized))
        count += 1
    return (copy, count) if count else (original, 0)


def _quantized_layers(model: ir.Model, stored: StoredOnly) -> Iterator[ir.Node]:
    """Nodes that do with their first operand what quantized weights say, and nothing else."""
    for node in model.graph:
        first, *rest = node.inputs or (None,)
        if (
            first is None
            or stored(first)
            or not rest
            or node.op_type not in _LAYERS | {"MatMulNBits"}
        ):
            continue
        weights = [value for value in rest if value is not None]
        if all(map(stored, weights)) and any(map(is_quantization, _kinds(node, weights))):
            yield node


def _kinds(node: ir.Node, weights: list[ir.Value]) -> Iterator[str]:
    """The operators that a layer consists of."""
    yield node.op_type
    pending = [value.producer() for value in weights]
    while pending:
        maker = pending.pop()
        if maker is not None:
            yield maker.op_type
            pending.extend(None if value is None else value.producer() for value in maker.inputs)


@dataclass(slots=True)
class _Graft:
    """Puts nodes of one model, with what is stored for them, into another."""

    model: ir.Model
    _copies: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def replace(self, node: ir.Node, other: ir.Node) -> None:
        """Do what ``other`` does in the place of a node, to what that reads."""
        inputs = [node.inputs[0], *(self._stored(value, node) for value in other.inputs[1:])]
        self.model.opset_imports.setdefault(other.domain, 1)
        new = ir.Node(other.domain, other.op_type, inputs, [*other.attributes.values()])
        new.outputs[0].name = f"{node.outputs[0].name}/quantized"
        if node.outputs[0].type is not None:
            new.outputs[0].type = node.outputs[0].type
        new.outputs[0].shape = node.outputs[0].shape
        self.model.graph.insert_before(node, new)
        _take_name(new.outputs[0], node.outputs[0])
        self.model.graph.remove(node, safe=True)

    def _stored(self, value: ir.Value | None, before: ir.Node) -> ir.Value | None:
        if value is None or value in self._copies:
            return None if value is None else self._copies[value]
        maker, name = value.producer(), f"{value.name}/quantized"
        if maker is None:
            new = ir.Value(name=name, shape=value.shape, type=value.type)
            if value.const_value is not None:
                new.const_value = called(value.const_value, name)
            self.model.graph.register_initializer(new)
        else:
            inputs = [self._stored(each, before) for each in maker.inputs]
            self.model.opset_imports.setdefault(maker.domain, 1)
            node = ir.Node(maker.domain, maker.op_type, inputs, [*maker.attributes.values()])
            node.outputs[0].name = name
            self.model.graph.insert_before(before, node)
            new = node.outputs[0]
        self._copies[value] = new
        return new


def _take_name(new: ir.Value, old: ir.Value) -> None:
    """Let everybody read the new value, under the old one's name where that is an output."""
    returned, name = old.is_graph_output(), old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if returned:
        old.name, new.name = f"{name}/replaced", name


def _store_numbers(node: ir.Node, matrix: Array) -> None:
    """Let a MatMul have another matrix."""
    old = node.inputs[1]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    kind = ir.DataType.from_numpy(matrix.dtype)
    name = f"{old.name}/{node.outputs[0].name}/quantized"
    new = ir.Value(name=name, shape=ir.Shape(matrix.shape), type=ir.TensorType(kind))
    new.const_value = ir.Tensor(matrix, name=name)
    node.graph.register_initializer(new)
    node.replace_input_with(1, new)


def _width(node: ir.Node) -> int:
    """How many numbers of a row a layer reads; 0 where its matrix is not stored as one."""
    weight = None if len(node.inputs) < 2 else node.inputs[1]
    tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
    if tensor is None or len(tensor.shape) != 2:
        return 0
    turned = "transB" in node.attributes and node.attributes["transB"].as_int()
    return int(tensor.shape.numpy()[1 if turned else 0])


def _type_of(node: ir.Node) -> Any:
    """NumPy's type of the matrix of a layer."""
    weight = node.inputs[1]
    tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
    assert tensor is not None
    return tensor.dtype.numpy()


def _is_nearly(node: ir.Node, other: ir.Node, optimized: ir.Model) -> bool:
    """Whether both do nearly the same to a few random rows."""
    width = _width(node)
    if not width:
        return False
    kind = _type_of(node)
    rows = np.random.default_rng(0).standard_normal((_ROWS, width)).astype(kind)
    try:
        both = [_run(each, rows, optimized) for each in (node, other)]
    except Exception:  # ONNX Runtime's own exception types share no public base
        return False
    if both[0].shape != both[1].shape:
        return False
    error = np.abs(both[0].astype(np.float64) - both[1]).std()
    return bool(error <= NEARLY * both[0].astype(np.float64).std())


def _run(node: ir.Node, rows: Array, like: ir.Model) -> Array:
    """What a layer makes of some rows, by itself."""
    given = ir.Value(name="rows", type=ir.TensorType(ir.DataType.from_numpy(rows.dtype)))
    given.shape = ir.Shape(rows.shape)
    graph = ir.Graph([given], [], nodes=[], opset_imports=dict(like.opset_imports), name="layer")
    graft = _Graft(ir.Model(graph, ir_version=like.ir_version))
    place = ir.Node("", "Identity", [given])
    place.outputs[0].name = "made"
    graph.append(place)
    graph.outputs.append(place.outputs[0])
    graft.replace(place, node)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*ACCURACY_OF_FUSED)
    session = ort.InferenceSession(
        ir.to_proto(graft.model).SerializeToString(), options, ["CPUExecutionProvider"]
    )
    (made,) = session.run(None, {"rows": rows})
    result: Array = made
    return result
