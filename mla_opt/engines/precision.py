"""Give a float32 model 16 bits where TensorRT gains by it, and leave float32 where sums need it.

    products (MatMul, attention, caches)       16 bits, their weights too
    what only moves elements                   as what it moves
    everything else (norms, rotary embedding,  float32
    residual sums, softmax, routing)

A strongly typed network is executed as written, so every change of type is a Cast in the graph; a
value is cast once for all that read it. The types of inputs and outputs stay, but those of the
latent caches, which are kept in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from mla_opt.errors import InputError
from mla_opt.operator.contract import DOMAIN, OP_TYPES, is_operator

Precision = Literal["float16", "bfloat16"]

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Conv", "Attention", "TensorScatter", *OP_TYPES})
#: Operators that move elements, and how many of their first inputs hold what they move.
MOVES = {
    "Concat": None,
    "Expand": 1,
    "Flatten": 1,
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "Identity": 1,
    "Reshape": 1,
    "Slice": 1,
    "Split": 1,
    "Squeeze": 1,
    "Tile": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
WIDE = ir.DataType.FLOAT
NARROW = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def convert(model: ir.Model, precision: Precision, caches: Iterable[str]) -> ir.Model:
    """Return a copy of the model whose products and ``caches`` (inputs) have 16 bits.

    A model whose products have that type already comes back as it is.

    Raises:
        InputError: the model has another 16-bit type.
    """
    narrow, found = NARROW[precision], weight_type(model)
    if found == narrow:
        return model
    if found != WIDE:
        raise InputError(
            f"the model's weights are {found.name.lower()}: only float32 is converted, so its"
            f" precision is {found.name.lower()}, not {precision}"
        )
    copy = model.clone()
    common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(copy)
    common.ShapeInferencePass(strict_mode=False, data_prop=False)(copy)
    _check_types(copy.graph)
    _pin_casts(copy.graph)
    _Conversion(copy.graph, narrow).run(frozenset(caches))
    return copy


def weight_type(model: ir.Model) -> ir.DataType:
    """The floating-point type that most bytes of the stored tensors have."""
    sizes: dict[ir.DataType, int] = {WIDE: 0}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.dtype is not None and value.dtype.is_floating_point() and value.const_value:
                sizes[value.dtype] = sizes.get(value.dtype, 0) + value.const_value.nbytes
    return max(sizes, key=lambda each: sizes[each])


def _check_types(graph: ir.Graph) -> None:
    """Raise `InputError` where the type of a value cannot be told."""
    for node in graph:
        for value in node.outputs:
            if value.dtype is None and value.uses():
                raise InputError(
                    f"the element type of {value.name!r}, which {node.name!r} ({node.op_type})"
                    " makes, is not known, so the model's precision cannot be changed"
                )


def _pin_casts(graph: ir.Graph) -> None:
    """Let no operator take its type from an operand whose type is about to change."""
    for node in graph:
        if node.op_type == "CastLike" and node.outputs[0].dtype == WIDE:
            (source, _), output = node.inputs, node.outputs[0]
            cast = ir.node("Cast", [source], {"to": WIDE}, name=f"{node.name}/pinned")
            cast.outputs[0].dtype, cast.outputs[0].name = WIDE, f"{output.name}/pinned"
            graph.insert_before(node, cast)
            ir.convenience.replace_all_uses_with(output, cast.outputs[0])
            graph.remove(node, safe=True)


@dataclass(slots=True)
class _Conversion:
    """One graph under conversion; ``casts`` keeps what was cast already, by value and type."""

    graph: ir.Graph
    narrow: ir.DataType
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    wide: set[ir.Value] = field(default_factory=set)

    def run(self, caches: frozenset[str]) -> None:
        self.graph.sort()
        self.wide = _floats(self.graph)
        outputs = list(self.graph.outputs)
        kept = {v for v in outputs if v in self.wide}
        for value in self.graph.inputs:
            if value.name in caches:
                self._declare(value, self.narrow)
        for node in list(self.graph):
            self._convert(node)
        for place, value in enumerate(outputs):
            if value in kept and value.dtype == self.narrow and not _is_cache(value):
                self._restore_output(place, value)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _convert(self, node: ir.Node) -> None:
        data = _data(node)
        wanted = self._wanted(node, data)
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.wide:
                target = wanted if index in data else WIDE
                node.replace_input_with(index, self._as(value, target))
        self._convert_branches(node)
        for output in node.outputs:
            if output in self.wide:
                self._declare(output, wanted)

    def _wanted(self, node: ir.Node, data: Sequence[int]) -> ir.DataType:
        """The type that a node computes in."""
        if node.op_type in PRODUCTS:
            return self.narrow
        if node.op_type not in MOVES:
            return WIDE
        moved = [v for i in data if (v := node.inputs[i]) is not None and v in self.wide]
        free = [v for v in moved if v.is_initializer()]
        return self.narrow if all(v.dtype == self.narrow or v in free for v in moved) else WIDE

    def _convert_branches(self, node: ir.Node) -> None:
        """Branches compute in float32, and read what they capture as such."""
        for attribute in node.attributes.values():
            if attribute.type != ir.AttributeType.GRAPH:
                continue
            for inner in attribute.as_graph().all_nodes():
                for index, value in enumerate(inner.inputs):
                    if value is not None and value in self.wide:
                        inner.replace_input_with(index, self._as(value, WIDE))

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.casts:
            stored = value.is_initializer() and not value.is_graph_input()
            self.casts[key] = self._stored(value, dtype) if stored else self._cast(value, dtype)
        return self.casts[key]

    def _stored(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        name, source = f"{value.name}/{dtype.name.lower()}", value.const_value
        if dtype == ir.DataType.FLOAT16:
            _check_range(value.name, source)
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(_rounded(source, dtype), dtype=dtype),
            dtype=dtype,
            shape=ir.Shape(source.shape.numpy()),
            name=name,
        )
        new = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(new)
        return new

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A Cast right behind what makes the value."""
        name = f"{value.name}/{dtype.name.lower()}"
        output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        node = ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=f"{name}/Cast")
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return output

    def _declare(self, value: ir.Value, dtype: ir.DataType) -> None:
        value.type = ir.TensorType(dtype)  # a new one: a clone shares its types

    def _restore_output(self, place: int, value: ir.Value) -> None:
        """Return an output in float32, by its name."""
        name = value.name
        value.name = f"{name}/narrow"
        new = self._as(value, WIDE)
        new.name, new.shape = name, value.shape
        self.graph.outputs[place] = new


def _floats(graph: ir.Graph) -> set[ir.Value]:
    """The float32 values of the main graph."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    return {value for value in values if value.dtype == WIDE}


def _data(node: ir.Node) -> Sequence[int]:
    """The inputs of a node that have the type it computes in."""
    count = len(node.inputs)
    moved = MOVES.get(node.op_type)
    return range(count if moved is None else min(moved, count))


def _is_cache(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return False
    return node.op_type == "TensorScatter" or (
        is_operator(node.domain, node.op_type) and (value.index() or 0) > 0
    )


def _check_range(name: str | None, tensor: ir.TensorProtocol) -> None:
    """Raise `InputError` where float16 would make an infinity of a weight."""
    array = tensor.numpy()
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise InputError(
            f"the weight {name!r} holds {largest:.3g}, too large for float16; take bfloat16"
        )


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType) -> npt.NDArray[Any]:
    rounded: npt.NDArray[Any] = tensor.numpy().astype(dtype.numpy())
    return rounded
