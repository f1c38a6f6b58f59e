"""The graph protocol over onnx_ir: reading, shape binding and in-place rewriting of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from mla_opt.errors import InputError
from mla_opt.graphs import operations as op
from mla_opt.graphs.bindings import Bindings, Shapes, Sizes
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.graphs.onnx.binding import OnnxBinding, UnboundValueError
from mla_opt.graphs.onnx.builder import OnnxBuilder
from mla_opt.graphs.onnx.foreign_shapes import declared
from mla_opt.graphs.onnx.integers import Integers
from mla_opt.graphs.onnx.no_ops import unchanged
from mla_opt.graphs.onnx.operations import read
from mla_opt.graphs.onnx.quantization.dequantized import dequantized
from mla_opt.graphs.onnx.quantization.roundings import Rounding, Roundings
from mla_opt.graphs.onnx.stored import StoredOnly
from mla_opt.graphs.onnx.stored_rows import StoredMatrices
from mla_opt.graphs.onnx.symbols import SymbolicShapes
from mla_opt.graphs.protocol import EXAMPLE, Size
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array, Value
from mla_opt.operator import contract
from mla_opt.operator.kv_b import KvB
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle
from mla_opt.operator.onnx.node import settle
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.drafts import Draft

_IR_VERSION_OF_FUNCTIONS = 8

_DRAWN = ("Random", "Bernoulli", "Multinomial")

SMALL = 4096
"""Stored tensors of at most this many elements are read while matching; larger ones are not."""


class OnnxGraph(Bindings[OnnxBinding]):
    """The main graph of one ``onnx_ir.Model``, read and rewritten in place.

    ``style`` is that of the bodies of fused operators.
    """

    def __init__(self, model: ir.Model, *, style: BodyStyle = ONNX_RUNTIME) -> None:
        self.model = model
        self._style = style
        self.sites: list[LatentAttentionSite] = []
        self.drafts: list[Draft] = []
        self.roundings: Sequence[Rounding] = ()
        self._taken_out = Roundings()
        self._operations: dict[ir.Node, op.Operation] = {}
        self._stored_only = StoredOnly()
        self._positions: dict[ir.Node, int] = {}

    @cached_property
    def interface(self) -> ModelInterface:
        """What the model's inputs and outputs are for, as the file declared them."""
        return ModelInterface.of(self.model)

    @cached_property
    def _names(self) -> set[str]:
        """Every name in use, so that new ones can be told apart."""
        return (
            {
                name
                for item in ir.traversal.RecursiveGraphIterator(self.model.graph)
                for name in (item.name, *(value.name for value in item.outputs))
                if name is not None
            }
            | {value.name for value in self.model.graph.inputs if value.name is not None}
            | set(self.model.graph.initializers)
        )

    # Reading

    def nodes(self) -> Sequence[ir.Node]:
        """All nodes of the main graph, producers before consumers."""
        return tuple(self.model.graph)

    def position(self, node: ir.Node) -> int:
        """Place of a node among those that the graph had when it was looked at."""
        if not self._positions:
            self._positions = {each: place for place, each in enumerate(self.model.graph)}
        return self._positions[node]

    def refresh(self) -> None:
        """Forget what was known of the graph as a whole."""
        self._positions = {}
        self._operations.clear()
        self._bindings.clear()

    def operation(self, node: ir.Node) -> op.Operation:
        """What the node means; read once."""
        known = self._operations.get(node)
        if known is None:
            known = self._operations[node] = read(self, node)
        return known

    def label(self, node: ir.Node) -> str:
        """Name and operator of a node, for messages."""
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        return f"{node.name or '(unnamed)'} ({kind})"

    def producer(self, value: ir.Value) -> ir.Node | None:
        """The node that makes the value."""
        return value.producer()

    def consumers(self, value: ir.Value) -> Sequence[ir.Node]:
        """The nodes that read the value."""
        return value.consumers()

    def operands(self, node: ir.Node) -> Sequence[ir.Value]:
        """What the node reads."""
        return tuple(value for value in node.inputs if value is not None)

    def results(self, node: ir.Node) -> Sequence[ir.Value]:
        """What the node makes."""
        return tuple(node.outputs)

    @cached_property
    def _stored(self) -> StoredMatrices:
        return StoredMatrices(self.model)

    def stored_rows(self, rows: Array) -> KvB | None:
        """Rows of a matrix that MatMulNBits or DequantizeLinear reads."""
        return self._stored.find(rows)

    def scaled_rows(self, rows: Array) -> KvB | None:
        """Rows of a stored matrix of integers or narrow floats, with scales of their own."""
        return self._stored.find_multiples(rows)

    def is_input(self, value: ir.Value) -> bool:
        """Whether the value is an input, and not a stored tensor that may be overridden."""
        return value.is_graph_input() and not value.is_initializer()

    def is_changed(self, value: ir.Value) -> bool:
        """Never: what a call makes of an input is an output."""
        return False

    def why_it_stays(self, value: ir.Value) -> str:
        """Nothing: whoever feeds an input reads what it is."""
        return ""

    def is_output(self, value: ir.Value) -> bool:
        """Whether the value is an output of the graph."""
        return value.is_graph_output()

    def constant(self, value: ir.Value) -> Array | None:
        """Content of a stored tensor or of a Constant node."""
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None or value.is_graph_input() else np.asarray(tensor.numpy())

    def small_constant(self, value: ir.Value) -> Array | None:
        """Like :meth:`constant`, for tensors small enough to be read while matching."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return dequantized(value, SMALL)
        if value.is_graph_input() or tensor.size > SMALL:
            return None
        return np.asarray(tensor.numpy())

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value depends on stored tensors only, through any operators."""
        return self._stored_only(value)

    def stored_number(self, value: ir.Value) -> float | None:
        """The number of a tensor of one element that is computed from stored tensors only."""
        shape = self.sizes(value)
        if shape is None or any(size != 1 for size in shape) or not self.is_constant(value):
            return None
        try:
            (content,) = self.nearest_binding(*EXAMPLE).run([value], {})
        except InputError:
            return None
        return float(content.reshape(-1)[0]) if content.size == 1 else None

    def stored_name(self, value: ir.Value) -> str | None:
        """Name of a stored tensor."""
        return value.name if value.is_initializer() else None

    def has_content(self) -> bool:
        """A model whose weights cannot be read is refused before it comes here."""
        return True

    def alike(self, one: ir.Value, other: ir.Value) -> bool:
        """Whether two values are the same in every call: one, or computed alike of the same."""
        pending, seen = [(one, other)], set()
        while pending:
            pair = pending.pop()
            if pair[0] is pair[1] or pair in seen:
                continue
            seen.add(pair)
            operands = _of_same_operator(*pair)
            if operands is not None:
                pending.extend(operands)
            elif not self._same_numbers(*pair):
                return False
        return True

    def _same_numbers(self, one: ir.Value, other: ir.Value) -> bool:
        mine, theirs = self.small_constant(one), self.small_constant(other)
        return mine is not None and theirs is not None and np.array_equal(mine, theirs)

    def unchanged(self, node: ir.Node) -> ir.Value | None:
        """The operand that the node returns as it is, at every size; ``None`` where not proved."""
        operand = unchanged(self, node)
        if operand is None:
            return None
        both = (operand, node.outputs[0])
        # A file that contradicts itself proves nothing.
        if node.op_type == "Identity":  # what it makes has no shape but by a claim
            return None if _contradict(*map(self.declared_shape, both)) else operand
        shapes = [self.example_shape(value) for value in both]
        return None if None not in shapes and shapes[0] != shapes[1] else operand

    # Shapes

    @cached_property
    def _symbols(self) -> SymbolicShapes:
        symbols = SymbolicShapes(
            lambda value: declared(value, self.model.graph.inputs, symbols.unknown)
        )
        return symbols

    def sizes(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Shape as expressions of the model's own symbols, at every size."""
        return self._symbols.shape(value)

    shape = sizes

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value, as far as sizes and stored integers tell."""
        return self._symbols.integers(value)

    def unknown(self) -> Expression:
        """A size that is equal to itself only."""
        return self._symbols.unknown()

    def example_shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Shape at a small example of every dynamic dim; ``None`` where it cannot be told."""
        declared = self.declared_shape(value)
        if declared and all(isinstance(size, int) for size in declared):
            return tuple(size for size in declared if isinstance(size, int))
        try:
            return self.nearest_binding(*EXAMPLE).shape(value)
        except InputError:
            return None

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes."""
        shape = self.sizes(value) or self.example_shape(value)
        return None if shape is None else len(shape)

    def width(self, value: ir.Value) -> int | None:
        """Size of the last axis, when it is a fixed number."""
        known = self.sizes(value)
        if known and isinstance(known[-1], int):
            return known[-1]
        shape = self.example_shape(value)
        return shape[-1] if shape else None

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        """Element type; inferred and noted on the value where the file does not declare it."""
        known = value.dtype
        if known is None:
            known = value.dtype = self.nearest_binding(*EXAMPLE).element_type(value)
        return np.dtype(known.numpy())

    def element_type(self, value: ir.Value) -> ir.DataType | None:
        """Element type; ``None`` where it cannot be told."""
        try:
            return value.dtype or self.nearest_binding(*EXAMPLE).element_type(value)
        except (InputError, UnboundValueError):
            return None

    def _bound(self, shapes: Shapes, sizes: Sizes) -> OnnxBinding:
        return OnnxBinding(self.model, shapes, sizes)

    # Rewriting

    def builder(self, before: ir.Node, prefix: str) -> OnnxBuilder:
        """A builder that emits in front of ``before``."""
        return OnnxBuilder(self.model, before, prefix, self._names, style=self._style)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader and the graph outputs read ``new``, which takes over ``old``'s name."""
        name = old.name
        if old.is_graph_output():
            new.shape = old.shape if old.shape is not None else new.shape
            _take_over(new, old)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if name is not None and new.producer() is not None:
            old.name = self._retired(name)
            new.name = name

    def redirect(self, old: ir.Value, new: ir.Value) -> bool:
        """Let every reader of ``old`` read ``new``; outputs and names stay."""
        uses = tuple(old.uses())
        for use in uses:
            use.node.replace_input_with(use.idx, new)
        return bool(uses)

    def remove(self, node: ir.Node) -> None:
        """Remove a node whose results nobody reads, and what was made for it alone."""
        pending = [node]
        while pending:
            each = pending.pop()
            if each.graph is None or _is_needed(each):
                continue
            sources = [value.producer() for value in self.reads(each)]
            _release_captured(each)
            each.graph.remove(each, safe=True)
            pending.extend(source for source in sources if source is not None)

    def _retired(self, name: str | None) -> str:
        """A name, not in use, for a value whose own name another has taken over."""
        retired, count = f"{name}/replaced", 1
        while retired in self._names:
            count += 1
            retired = f"{name}/replaced_{count}"
        self._names.add(retired)
        return retired

    # Quantized activations

    def take_out_roundings(self) -> Sequence[Rounding]:
        """Let everything read activations as they are before they are rounded; returns where."""
        self._taken_out = Roundings.out_of(self.model)
        self.roundings = self._taken_out.taken
        if self.roundings:
            self._forget()
        return self.roundings

    def put_back_roundings(self) -> int:
        """Round again for those who read it so and are still there; in how many places?"""
        self.prune()
        back = sum(self._taken_out.put_back(each) for each in reversed(self._taken_out.taken))
        self.prune()
        return back

    def _forget(self) -> None:
        """Read everything anew, as nodes and values are others."""
        self.refresh()
        self._stored_only = StoredOnly()
        self.__dict__.pop("_symbols", None)
        self.__dict__.pop("_names", None)

    # The interface

    def taken(self) -> Sequence[ir.Value]:
        """Inputs of the graph."""
        return tuple(self.model.graph.inputs)

    def returned(self) -> Sequence[ir.Value]:
        """Outputs of the graph."""
        return tuple(self.model.graph.outputs)

    def declared_shape(self, value: ir.Value) -> tuple[int | str | None, ...]:
        """Shape as the file declares it."""
        if value.shape is None:
            return ()
        return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)

    def replace_input(
        self,
        old: ir.Value,
        name: str,
        shape: Sequence[int | str | None],
        dtype: str | None = None,
        moved: Mapping[int, int] | None = None,
    ) -> ir.Value:
        """Put another input in the place of ``old``, and redirect those who read its shape."""
        kind = old.type if dtype is None else ir.TensorType(ir.DataType[dtype.upper()])
        new = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
        new.metadata_props.update(old.metadata_props)
        inputs = self.model.graph.inputs
        place = list(inputs).index(old)
        old.name = self._retired(name)
        inputs[place] = new
        for binding in self._bindings.values():
            binding.adopt(new, old)
        self._redirect_shape(old, new, moved or {})
        return new

    def add_input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> ir.Value:
        """One more input, behind the others."""
        if any(value.name == name for value in self.model.graph.inputs):
            raise InputError(f"the model has an input called {name!r} already; rename it first")
        kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
        self.model.graph.inputs.append(value)
        return value

    def declare_rows(self, value: ir.Value, rows: int | str) -> None:
        """Declare how many rows an output has on its token axis."""
        if value.shape is not None and len(value.shape) == 4:
            batch, heads, _, width = value.shape
            value.shape = ir.Shape([batch, heads, rows, width])

    def declare_width(self, value: ir.Value, width: int) -> None:
        """Declare how wide the last axis of an output is."""
        if value.shape is not None:
            value.shape = ir.Shape([*self.declared_shape(value)[:-1], width])

    def add_output(
        self, value: ir.Value, name: str, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """Return one more value, behind the others."""
        if name in self._names:
            raise InputError(f"the model has a value called {name!r} already; rename it first")
        self._names.add(name)
        value.name = name
        value.shape = None if shape is None else ir.Shape(shape)
        self.model.graph.outputs.append(value)

    def remove_input(
        self, old: ir.Value, like: ir.Value, moved: Mapping[int, int] | None = None
    ) -> None:
        """Remove an input, and redirect those who read its shape."""
        self.model.graph.inputs.remove(old)
        self._redirect_shape(old, like, moved or {})

    def _redirect_shape(self, old: ir.Value, new: ir.Value, moved: Mapping[int, int]) -> None:
        """Sizes of batch and tokens come from ``new``, the others are what ``old`` declared."""
        sizes: list[Size] = [
            dim if isinstance(dim, int) else ((new, moved.get(axis, axis)),)
            for axis, dim in enumerate(self.declared_shape(old))
        ]
        for reader in self.shape_readers(old):
            self.replace_shape(reader, sizes)

    def replace_output(
        self, old: ir.Value, new: ir.Value, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """Return ``new`` where ``old`` was returned, under its name."""
        outputs = self.model.graph.outputs
        place, name = list(outputs).index(old), old.name
        if shape is not None:
            new.shape = ir.Shape(shape)
        _take_over(new, old)
        outputs[place] = new
        old.name, new.name = self._retired(name), name

    def remove_output(self, value: ir.Value) -> None:
        """Return a value no more."""
        self.model.graph.outputs.remove(value)

    def merge_outputs(
        self,
        olds: Sequence[ir.Value],
        new: ir.Value,
        name: str,
        shape: Sequence[int | str | None] | None = None,
    ) -> None:
        """Return ``new`` in the place of the first of ``olds``, and no other of them."""
        first, *others = olds
        self.replace_output(first, new, shape)
        new.name = name
        for other in others:
            self.model.graph.outputs.remove(other)

    # Shapes that are read at run time

    def shape_readers(self, value: ir.Value) -> Sequence[ir.Node]:
        """The Shape nodes that read the value."""
        return [node for node in value.consumers() if self.is_shape_reader(node)]

    def is_shape_reader(self, node: ir.Node) -> bool:
        """Whether the node is a Shape node."""
        return node.op_type == "Shape" and not node.domain

    def reads(self, node: ir.Node) -> Sequence[ir.Value]:
        """Operands, and what the branches of a conditional read of this graph."""
        branches = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        captured = [
            value
            for branch in branches
            for inner in branch.all_nodes()
            for value in inner.inputs
            if value is not None and value.graph is self.model.graph
        ]
        returned = [
            value
            for branch in branches
            for value in branch.outputs
            if value.graph is self.model.graph
        ]
        return (*self.operands(node), *captured, *returned)

    def replace_shape(self, reader: ir.Node, sizes: Sequence[Size]) -> None:
        """Put a shape together in front of ``reader``, for those who read it."""
        builder = self.builder(reader, f"{reader.outputs[0].name}/mla")
        parts = [_size(builder, size) for size in sizes[_slice_of(reader)]]
        whole = parts[0] if len(parts) == 1 else builder.concat(parts, 0, "shape")
        whole.dtype = ir.DataType.INT64
        ir.convenience.replace_all_uses_with(reader.outputs[0], whole, replace_graph_outputs=True)

    # Tidying

    def inline(self, domain: str) -> int:
        """Put the bodies of a domain's functions in place of their calls."""
        self.prune()
        before = len(self.model.functions)
        common.InlinePass(criteria=lambda function: function.domain == domain)(self.model)
        self.model.opset_imports.pop(domain, None)
        return before - len(self.model.functions)

    def prune(self) -> int:
        """Sort the nodes; drop nodes, stored tensors and functions that nothing reads."""
        before = len(self.model.graph)
        self.model.graph.sort()
        _remove_dead_nodes(self.model.graph)
        _remove_unread_tensors(self.model.graph)
        common.RemoveUnusedFunctionsPass()(self.model)  # type: ignore[no-untyped-call]
        return before - len(self.model.graph)

    def _all_nodes(self) -> Iterator[ir.Node]:
        """Nodes of the main graph and of all branches."""
        return iter(ir.traversal.RecursiveGraphIterator(self.model.graph))

    def settle_functions(self) -> None:
        """Give each body its name; import the operator's domain only if it is used."""
        settle(self.model)
        ours = [key for key in self.model.functions if key[0] == contract.DOMAIN]
        if not ours and not any(node.domain == contract.DOMAIN for node in self._all_nodes()):
            self.model.opset_imports.pop(contract.DOMAIN, None)
        if self.model.functions:
            self.model.ir_version = max(self.model.ir_version, _IR_VERSION_OF_FUNCTIONS)

    def text(self) -> str:
        """The graph as a person reads it."""
        return str(self.model.graph)


def _of_same_operator(one: ir.Value, other: ir.Value) -> list[tuple[ir.Value, ir.Value]] | None:
    """What the nodes of two values read, pairwise, if both nodes do the same with that."""
    first, second = one.producer(), other.producer()
    if first is None or second is None or first.op_identifier() != second.op_identifier():
        return None
    if first.op_type.startswith(_DRAWN) or one.index() != other.index():
        return None
    if dict(first.attributes) != dict(second.attributes) or not first.inputs:
        return None
    if [each is None for each in first.inputs] != [each is None for each in second.inputs]:
        return None
    return [(a, b) for a, b in zip(first.inputs, second.inputs) if a is not None and b is not None]


def _contradict(one: Sequence[int | str | None], other: Sequence[int | str | None]) -> bool:
    """Whether two claims of one shape cannot both be true; no claim contradicts nothing."""
    if not one or not other:
        return False
    numbers = [pair for pair in zip(one, other) if all(isinstance(size, int) for size in pair)]
    return len(one) != len(other) or any(a != b for a, b in numbers)


def _size(builder: OnnxBuilder, size: Size) -> ir.Value:
    """An int64 vector of one element."""
    if isinstance(size, int):
        return builder.integers(size)
    first, *others = (_part_of_size(builder, part) for part in size)
    for other in others:
        first = builder.add(first, other, "size")
    return first


def _part_of_size(builder: OnnxBuilder, part: int | tuple[Value, int | None]) -> ir.Value:
    if isinstance(part, int):
        return builder.integers(part)
    value, axis = part
    known = cast(ir.Value, value)
    return known if axis is None else builder.dimension(known, axis)


def _take_over(new: ir.Value, old: ir.Value) -> None:
    """Give an output what the file said of the one before it: type, metadata, documentation."""
    if new.dtype is None and old.dtype is not None:
        new.dtype = old.dtype
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)


def _slice_of(shape: ir.Node) -> slice:
    """The axes that a Shape node reads."""
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    return slice(start.value if start else None, end.value if end else None)


def _remove_dead_nodes(graph: ir.Graph) -> None:
    """Drop nodes without readers, last ones first; nodes with branches are judged as a whole."""
    for node in reversed(graph):
        if not _is_needed(node):
            _release_captured(node)
            graph.remove(node, safe=True)


def _is_needed(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _release_captured(node: ir.Node) -> None:
    """Let the branches of a node that goes read nothing any more of the graph around them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                for place in range(len(inner.inputs)):
                    inner.replace_input_with(place, None)


def _remove_unread_tensors(graph: ir.Graph) -> None:
    """Drop stored tensors without readers, but for those that are also inputs."""
    unread = [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    ]
    for name in unread:
        graph.initializers.pop(name)
