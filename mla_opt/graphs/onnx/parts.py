"""Parts of a bound model that are run alone in ONNX Runtime.

Their values get names of their own, so that equal parts of different layers are equal, and one
session serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from mla_opt.errors import InputError, require_memory
from mla_opt.graphs.onnx.effort import (
    MOST_ALIVE,
    MOST_ELEMENTS,
    MOST_STEPS,
    most_alive,
    steps,
)
from mla_opt.graphs.onnx.quantization.narrow import in_eight_bits, is_narrow
from mla_opt.graphs.onnx.widening import widen
from mla_opt.handles import Array
from mla_opt.ort_values import BFLOAT16, from_ort_value, to_ort_value

_FED_AS_INPUT = 1024
"""Stored tensors with more elements are fed, not embedded, so that layers share one session."""

_sessions: dict[tuple[bytes, bool], ort.InferenceSession] = {}
_SESSION_LIMIT = 64

_KEPT_ROOM = 1 << 24
"""Elements up to which a session keeps the memory that it ran in: it is faster the next time."""


class UnboundValueError(InputError):
    """A part of a graph depends on the data of something outside it, or cannot be run."""


class Bound(Protocol):
    """What is known of a model under fixed input shapes."""

    model: ir.Model
    narrow: bool
    functions: dict[ir.OperatorIdentifier, ir.Function]
    sizes: tuple[int, int, int]

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Shape of a value."""

    def known_data(self, value: ir.Value) -> Array | None:
        """Content of an integer value that follows from the shapes alone."""


class Part:
    """The nodes between some fed values and some outputs, renamed so that equal parts are equal."""

    def __init__(self, binding: Bound, fed: set[ir.Value]) -> None:
        self._binding = binding
        self._fed = fed
        self._names: dict[ir.Value, str] = {}
        self._nodes: list[ir.Node] = []
        self._embedded: list[tuple[str, Array]] = []
        self._weights: dict[str, Array] = {}
        self._steps, self._elements = 0.0, 0
        self._session: ort.InferenceSession | None = None
        self._tensors: dict[str, ort.OrtValue] = {}

    @classmethod
    def between(cls, binding: Bound, outputs: Sequence[ir.Value], fed: Iterable[ir.Value]) -> Part:
        """The nodes between some values."""
        part = cls(binding, set(fed))
        for value in outputs:
            part.visit(value)
        return part

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
        self._elements += sum(math.prod(self._binding.shape(each) or ()) for each in node.outputs)
        if self._elements > MOST_ELEMENTS:
            raise UnboundValueError(_too_large(node.name, MOST_ELEMENTS))

    def run(self, outputs: Sequence[ir.Value], feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Run the part; ``feeds`` are arrays of the values' own element types, always the same."""
        named = {
            self._names[value]: array for value, array in feeds.items() if value in self._names
        }
        if self._session is None:
            self._session = self._prepared(outputs, named)
        fed = self._as_run(named)  # kept: tensors may share its memory
        try:
            tensors = {**self._tensors, **_tensors(fed)}
            names = [self._names[value] for value in outputs]
            made = self._session.run_with_ort_values(names, tensors)
            return [from_ort_value(each) for each in made]
        except Exception as error:  # ONNX Runtime's own exception types share no public base
            require_memory(error)
            reason = _reason(error)
            raise UnboundValueError(f"ONNX Runtime cannot run it alone: {reason}") from error

    def _prepared(
        self, outputs: Sequence[ir.Value], named: Mapping[str, Array]
    ) -> ort.InferenceSession:
        """A session of the part; stored tensors that it is fed are ready, too."""
        alive = most_alive(self._nodes, outputs, self._binding.shape)
        if alive > MOST_ALIVE:
            raise UnboundValueError(_too_large(outputs[0].name, MOST_ALIVE))
        proto = self._proto(outputs, {**named, **self._weights})
        session = _session(_wide(proto) if self._binding.narrow else proto, alive <= _KEPT_ROOM)
        self._weights = self._as_run(self._weights)
        self._tensors = _tensors(self._weights)
        return session

    def _as_run(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays in the types in which the part is run."""
        if not self._binding.narrow:
            return dict(fed)
        return {name: _in_float32(array) for name, array in fed.items()}

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
                for domain, version in self._binding.model.opset_imports.items()
            ],
            ir_version=max(8, min(self._binding.model.ir_version, 10)),
            functions=[
                ir.serde.serialize_function(function)
                for function in self._binding.model.functions.values()
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


class RepeatedRuns:
    """A binding of a graph that does not change meanwhile: what was run before is ready to run."""

    def __init__(self, binding: Bound) -> None:
        self.sizes = binding.sizes
        self.shape = binding.shape
        self._binding = binding
        self._parts: dict[object, Part] = {}

    def repeated(self) -> RepeatedRuns:
        """Itself."""
        return self

    def run(self, outputs: Sequence[ir.Value], feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """Run the nodes between ``feeds`` and ``outputs`` in ONNX Runtime."""
        kinds = frozenset((value, array.dtype, array.ndim) for value, array in feeds.items())
        part = self._parts.get((tuple(outputs), kinds))
        if part is None:
            part = self._parts[tuple(outputs), kinds] = Part.between(self._binding, outputs, feeds)
        return part.run(outputs, feeds)


def _too_large(name: str | None, most: int) -> str:
    return (
        f"{name} and what it reads make more than {most} elements at sizes that the inputs"
        " declare; export with free sizes of batches and caches"
    )


def _reason(error: Exception) -> str:
    """The first line of what ONNX Runtime says; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _tensors(fed: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
    return {name: to_ort_value(array) for name, array in fed.items()}


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


def _session(proto: onnx.ModelProto, keep_room: bool) -> ort.InferenceSession:
    """A session, made once; with ``keep_room`` it keeps the memory that a run needs."""
    content = proto.SerializeToString(deterministic=True)
    known = _sessions.get((content, keep_room))
    if known is not None:
        return known
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = keep_room
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # parts are small, and threads that wait take a processor
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types share no public base
        require_memory(error)
        reason = _reason(error)
        raise UnboundValueError(f"ONNX Runtime cannot run it alone: {reason}") from error
    if len(_sessions) >= _SESSION_LIMIT:
        _sessions.clear()
    _sessions[content, keep_room] = session
    return session
