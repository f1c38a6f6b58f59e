"""A model with fixed input shapes: every shape becomes a number, and parts of it can be run.

Shapes come from the onnx-shape-inference library, which also follows integer data. That is what
lets a part of a graph run alone: reshape targets and scatter indices, which exporters compute from
the shapes of tensors far upstream, become constants.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_shape_inference
import onnxruntime as ort

from mla_opt.errors import InputError, require_memory
from mla_opt.graphs.onnx.effort import MOST_ELEMENTS, MOST_STEPS, steps
from mla_opt.graphs.onnx.foreign_shapes import bound_shapes, is_foreign, named_sizes
from mla_opt.graphs.onnx.quantization.narrow import in_eight_bits, is_narrow
from mla_opt.graphs.onnx.widening import uses_bfloat16, widen
from mla_opt.handles import Array
from mla_opt.ort_values import BFLOAT16, from_ort_value, to_ort_value

logger = logging.getLogger(__name__)

_FED_AS_INPUT = 1024
"""Stored tensors with more elements are fed, not embedded, so that layers share one session."""

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

_sessions: dict[bytes, ort.InferenceSession] = {}
_SESSION_LIMIT = 64


class UnboundValueError(InputError):
    """A part of a graph depends on the data of something outside it, or cannot be run."""


class OnnxBinding:
    """The main graph of a model under fixed input shapes."""

    def __init__(
        self,
        model: ir.Model,
        input_shapes: Mapping[str, Sequence[int]],
        sizes: tuple[int, int, int],
    ) -> None:
        self.sizes = sizes
        self._model = model
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
        for node in filter(is_foreign, self._model.graph):
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
        stuck = list(_stuck_operands(self._model.graph, self))
        part, wanted = _Part(self, set()), []
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

    def run(self, outputs: Sequence[ir.Value], feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Run the nodes between ``feeds`` and ``outputs`` in ONNX Runtime."""
        part = _Part(self, set(feeds))
        for value in outputs:
            part.visit(value)
        return part.run(outputs, feeds)

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


class _Part:
    """The nodes between some fed values and some outputs, renamed so that equal parts are equal."""

    def __init__(self, binding: OnnxBinding, fed: set[ir.Value]) -> None:
        self._binding = binding
        self._fed = fed
        self._names: dict[ir.Value, str] = {}
        self._nodes: list[ir.Node] = []
        self._embedded: list[tuple[str, Array]] = []
        self._weights: dict[str, Array] = {}
        self._steps = 0.0

    def visit(self, value: ir.Value) -> None:
        """Take in a value and everything it needs, producers first."""
        stack: list[tuple[ir.Value, bool]] = [(value, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                self._take_node(current)
            elif current not in self._names:
                stack.extend(self._open(current))

    def _open(self, value: ir.Value) -> list[tuple[ir.Value, bool]]:
        if value in self._fed:
            self._names[value] = f"v{len(self._names)}"
            return []
        content = self._content(value)
        if content is not None:
            self._store(value, content)
            return []
        node = value.producer()
        if node is None:
            raise UnboundValueError(f"{value.name} is an input that this part must not depend on")
        pending = [each for each in node.inputs if each is not None and each not in self._names]
        return [(value, True), *((each, False) for each in reversed(pending))]

    def _content(self, value: ir.Value) -> Array | None:
        if value.is_initializer() and value.const_value is not None:
            content = np.asarray(value.const_value.numpy())
            widened = in_eight_bits(value, content)
            return content if widened is None else widened
        return self._binding.known_data(value)

    def _store(self, value: ir.Value, content: Array) -> None:
        name = self._names[value] = f"v{len(self._names)}"
        if content.size > _FED_AS_INPUT and not is_narrow(ir.DataType.from_numpy(content.dtype)):
            self._weights[name] = content
        else:
            self._embedded.append((name, content))

    def _take_node(self, value: ir.Value) -> None:
        if value in self._names:
            return
        node = value.producer()
        assert node is not None
        self._check_effort(node)
        self._nodes.append(node)
        for output in node.outputs:
            self._names.setdefault(output, f"v{len(self._names)}")

    def _check_effort(self, node: ir.Node) -> None:
        """Check that the part still takes a bounded time and bounded memory.

        Raises:
            UnboundValueError: it does not.
        """
        self._steps += steps(node, self._content, self._binding.functions)
        if self._steps > MOST_STEPS:
            raise UnboundValueError(f"{node.name} takes more than {MOST_STEPS} steps to run")
        for output in node.outputs:
            if math.prod(self._binding.shape(output) or ()) > MOST_ELEMENTS:
                raise UnboundValueError(f"{output.name} has more than {MOST_ELEMENTS} elements")

    def run(self, outputs: Sequence[ir.Value], feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Run the part; ``feeds`` are arrays of the values' own element types."""
        named = {
            self._names[value]: array for value, array in feeds.items() if value in self._names
        }
        fed = {**named, **self._weights}
        proto = self._proto(outputs, fed)
        if self._binding.narrow:
            proto, fed = _wide(proto), {name: _in_float32(array) for name, array in fed.items()}
        session = _session(proto)
        try:
            tensors = {name: to_ort_value(array) for name, array in fed.items()}
            made = session.run_with_ort_values([self._names[value] for value in outputs], tensors)
            return [from_ort_value(each) for each in made]
        except Exception as error:  # ONNX Runtime's own exception types share no public base
            require_memory(error)
            reason = str(error).splitlines()[0]
            raise UnboundValueError(f"ONNX Runtime cannot run it alone: {reason}") from error

    def _proto(self, outputs: Sequence[ir.Value], fed: Mapping[str, Array]) -> onnx.ModelProto:
        graph = onnx.helper.make_graph(
            [self._node_proto(node) for node in self._nodes],
            "part",
            [_free_shape(name, array) for name, array in fed.items()],
            [onnx.ValueInfoProto(name=self._names[value]) for value in outputs],
            [ir.serde.serialize_tensor(ir.Tensor(a, name=name)) for name, a in self._embedded],
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=[
                onnx.helper.make_opsetid(domain, version)
                for domain, version in self._binding._model.opset_imports.items()
            ],
            ir_version=max(8, min(self._binding._model.ir_version, 10)),
            functions=[
                ir.serde.serialize_function(function)
                for function in self._binding._model.functions.values()
            ],
        )

    def _node_proto(self, node: ir.Node) -> onnx.NodeProto:
        proto = ir.serde.serialize_node(node)
        proto.ClearField("metadata_props")
        proto.name = ""
        for index, value in enumerate(node.inputs):
            proto.input[index] = "" if value is None else self._names[value]
        for index, value in enumerate(node.outputs):
            proto.output[index] = self._names[value] if value.name else ""
        return proto


def _wide(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same part in float32 where it is in bfloat16, for which there are few kernels."""
    model = ir.from_proto(proto)
    widen(model)
    return ir.to_proto(model)


def _in_float32(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == BFLOAT16 else array


def _free_shape(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = int(ir.DataType.from_numpy(array.dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    key = proto.SerializeToString(deterministic=True)
    if key not in _sessions:
        if len(_sessions) >= _SESSION_LIMIT:
            _sessions.clear()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # a small part: threads cost more than they save
        try:
            _sessions[key] = ort.InferenceSession(key, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types share no public base
            require_memory(error)
            reason = str(error).splitlines()[0]
            raise UnboundValueError(f"ONNX Runtime cannot run it alone: {reason}") from error
    return _sessions[key]


def _shape_only_clone(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> ir.Model:
    """A copy that shares the stored tensors, with fixed input shapes and no other claims."""
    bound = model.clone()
    for value in _values(bound.graph):
        if value.producer() is not None:
            value.shape = None
    for value in bound.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(list(shapes[value.name]))
    return bound


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
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
