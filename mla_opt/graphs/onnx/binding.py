"""A model with fixed input shapes: every shape becomes a number, and parts of it can be run.

Shapes come from the onnx-shape-inference library, which also follows integer data. That is what
lets a part of a graph run alone: reshape targets and scatter indices, which exporters compute from
the shapes of tensors far upstream, become constants.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_shape_inference

from mla_opt.graphs.onnx.foreign_shapes import bound_shapes, is_foreign, named_sizes
from mla_opt.graphs.onnx.parts import Part, RepeatedRuns, UnboundValueError
from mla_opt.graphs.onnx.widening import uses_bfloat16
from mla_opt.handles import Array

__all__ = ["OnnxBinding", "UnboundValueError"]

logger = logging.getLogger(__name__)

_ROUNDS = 6
"""How often shape inference goes on after the operands it got stuck at were computed."""

_SHAPE_OPERANDS = {
    "Expand": (1,),
    "Reshape": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Range": (0, 1, 2),
}


class OnnxBinding:
    """The main graph of a model under fixed input shapes."""

    def __init__(
        self,
        model: ir.Model,
        input_shapes: Mapping[str, Sequence[int]],
        sizes: tuple[int, int, int],
    ) -> None:
        self.sizes = sizes
        self.model = model
        self._shapes: dict[ir.Value, tuple[int, ...]] = {}
        self._integers: dict[ir.Value, Array] = {}
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self.narrow = uses_bfloat16(model)
        self.functions = dict(model.functions)
        self._values = {value.name: value for value in _values(model.graph)}
        bound = _shape_only_clone(model, input_shapes)
        self._infer(bound)
        named = named_sizes(model.graph.inputs, input_shapes)
        for _ in range(_ROUNDS):
            told = self._tell_foreign(bound, named)
            if not self._resolve(bound) and not told:
                break
            self._infer(bound)

    def _infer(self, bound: ir.Model) -> None:
        quiet = logging.getLogger("onnx_shape_inference")
        level, quiet.level = quiet.level, logging.CRITICAL
        try:
            onnx_shape_inference.infer_symbolic_shapes(
                bound, policy="override", warn_on_missing=False
            )
        except (onnx_shape_inference.ShapeInferenceError, ValueError, TypeError) as error:
            logger.info("shapes are known only as far as inference came: %s", error)
        finally:
            quiet.setLevel(level)
        for value in _values(bound.graph):
            self._record(value)

    def _tell_foreign(self, bound: ir.Model, named: Mapping[str, int]) -> bool:
        """Tell inference what operators make that it does not know, where it got stuck."""
        copies = {value.name: value for value in _values(bound.graph)}
        told = False
        for node in filter(is_foreign, self.model.graph):
            for output, shape in zip(node.outputs, bound_shapes(node, self.shape, named)):
                if shape is None or output in self._shapes:
                    continue
                copy = copies[output.name]
                self._shapes[output], copy.shape, told = shape, ir.Shape(shape), True
                kind = copy.dtype or self._type_of_floats(node)
                if kind is not None:
                    copy.dtype = kind
        return told

    def _type_of_floats(self, node: ir.Node) -> ir.DataType | None:
        """The type of the first operand in floating point: scales, where the rest is packed."""
        kinds = (None if value is None else self._dtypes.get(value) for value in node.inputs)
        return next((k for k in kinds if k is not None and k.is_floating_point()), None)

    def _resolve(self, bound: ir.Model) -> bool:
        """Compute the shape operands that inference does not follow, where it got stuck.

        Exporters choose between shapes with Equal and Where, which the library leaves unknown.
        """
        copies = {value.name: value for value in _values(bound.graph)}
        stuck = list(_stuck_operands(self.model.graph, self))
        part, wanted = Part(self, set()), []
        for value in stuck:
            try:
                part.visit(value)
            except UnboundValueError:
                continue
            wanted.append(value)
        if not wanted:
            return False
        for value, content in zip(wanted, part.run(wanted, {})):
            self._integers[value] = content.reshape(-1)
            self._shapes[value] = content.shape
            copies[value.name].const_value = ir.Tensor(content)
        return True

    def _record(self, inferred: ir.Value) -> None:
        """Note what was inferred, by the value of the model itself: its name may change."""
        value = self._values[inferred.name]
        if inferred.dtype is not None:
            self._dtypes[value] = inferred.dtype
        sizes = () if inferred.shape is None else tuple(inferred.shape)
        known = tuple(size for size in sizes if isinstance(size, int))
        if inferred.shape is not None and len(known) == len(sizes):
            self._shapes[value] = known
        data = inferred.metadata_props.get(onnx_shape_inference.SYM_DATA_KEY)
        numbers = json.loads(data) if data else None
        if isinstance(numbers, list) and all(isinstance(number, int) for number in numbers):
            self._integers[value] = np.asarray(numbers, dtype=np.int64)

    def adopt(self, new: ir.Value, old: ir.Value) -> None:
        """Know a new input in the place of an old one: its sizes, where it declares no others."""
        known = self._shapes.get(old)
        if known is None or new.shape is None or len(new.shape) != len(known):
            return
        sizes = zip(new.shape, known)
        self._shapes[new] = tuple(dim if isinstance(dim, int) else size for dim, size in sizes)

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Shape under this binding; ``None`` when inference could not tell."""
        return self._shapes.get(value)

    def element_type(self, value: ir.Value) -> ir.DataType:
        """Element type, as far as inference came."""
        known = self._dtypes.get(value)
        if known is None:
            raise UnboundValueError(f"the element type of {value.name} is unknown")
        return known

    def repeated(self) -> RepeatedRuns:
        """A view that prepares each part once."""
        return RepeatedRuns(self)

    def run(self, outputs: Sequence[ir.Value], feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Run the nodes between ``feeds`` and ``outputs`` in ONNX Runtime."""
        return Part.between(self, outputs, feeds).run(outputs, feeds)

    def known_data(self, value: ir.Value) -> Array | None:
        """Content of an integer value that follows from the shapes alone."""
        node = value.producer()
        if node is not None and node.op_type == "Shape" and node.domain == "":
            return self._shape_data(node)
        numbers, shape = self._integers.get(value), self._shapes.get(value)
        if numbers is None or shape is None or numbers.size != int(np.prod(shape)):
            return None
        dtype = self._dtypes.get(value, ir.DataType.INT64).numpy()
        return numbers.reshape(shape).astype(dtype)

    def unknown_content(self, value: ir.Value) -> bool:
        """Whether the content of a computed value is not known, nor stored in the model."""
        return not value.is_initializer() and self.known_data(value) is None

    def _shape_data(self, node: ir.Node) -> Array | None:
        source = node.inputs[0]
        shape = None if source is None else self.shape(source)
        if shape is None:
            return None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        chosen = slice(start.value if start else 0, end.value if end else None)
        return np.asarray(shape[chosen], dtype=np.int64)


def _shape_only_clone(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> ir.Model:
    """A copy that shares the stored tensors, with fixed input shapes and no other claims."""
    bound = model.clone()
    bodies: list[ir.Graph | ir.Function] = [*bound.graphs(), *bound.functions.values()]
    for body in bodies:
        for value in _values(body):
            # Where inference notes integers; what a file has there is not its work.
            value.metadata_props.pop(onnx_shape_inference.SYM_DATA_KEY, None)
    for value in _values(bound.graph):
        if value.producer() is not None:
            value.shape = None
    for value in bound.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(list(shapes[value.name]))
    return bound


def _values(graph: ir.Graph | ir.Function) -> Iterable[ir.Value]:
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _stuck_operands(graph: ir.Graph, binding: OnnxBinding) -> Iterable[ir.Value]:
    """Shape operands of unknown content, of nodes that nothing else keeps from being inferred."""
    for node in graph:
        places = _SHAPE_OPERANDS.get(node.op_type, ())
        if not places or binding.shape(node.outputs[0]) is not None:
            continue
        for place in places:
            value = node.inputs[place] if place < len(node.inputs) else None
            if value is not None and binding.unknown_content(value):
                yield value
