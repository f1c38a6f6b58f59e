"""The graph protocol over onnx_ir: reading one model and binding its shapes; edits stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs import operations as op
from mla_opt.graphs.bindings import Shapes, Sizes
from mla_opt.graphs.onnx.alike import alike
from mla_opt.graphs.onnx.binding import OnnxBinding, UnboundValueError
from mla_opt.graphs.onnx.foreign_shapes import declared
from mla_opt.graphs.onnx.integers import Integers
from mla_opt.graphs.onnx.interface_edits import InterfaceEdits
from mla_opt.graphs.onnx.no_ops import unchanged
from mla_opt.graphs.onnx.operations import read
from mla_opt.graphs.onnx.quantization.dequantized import dequantized
from mla_opt.graphs.onnx.quantization.roundings import Rounding, Roundings
from mla_opt.graphs.onnx.reading import OPAQUE
from mla_opt.graphs.onnx.stored import StoredOnly
from mla_opt.graphs.onnx.stored_rows import StoredMatrices, packed_rows
from mla_opt.graphs.onnx.symbols import SymbolicShapes
from mla_opt.graphs.protocol import EXAMPLE
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array
from mla_opt.operator.kv_b import KvB
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.drafts import Draft

SMALL = 4096
"""Stored tensors of at most this many elements are read while matching; larger ones are not."""


class OnnxGraph(InterfaceEdits):
    """The main graph of one ``onnx_ir.Model``, read and rewritten in place.

    ``style`` is that of the bodies of fused operators.
    """

    def __init__(self, model: ir.Model, *, style: BodyStyle = ONNX_RUNTIME) -> None:
        super().__init__(model, style)
        self.sites: list[LatentAttentionSite] = []
        self.drafts: list[Draft] = []
        self.roundings: Sequence[Rounding] = ()
        self.runs_in_threads = True
        self._taken_out = Roundings()
        self._operations: dict[ir.Node, op.Operation] = {}
        self._stored_only = StoredOnly()
        self._positions: dict[ir.Node, int] = {}

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
        """What the node means; read once. In a branch it is not known when it is run, if it is."""
        if node.graph is not None and node.graph is not self.model.graph:
            return OPAQUE
        known = self._operations.get(node)
        if known is None:
            known = self._operations[node] = read(self, node)
        return known

    def label(self, node: ir.Node) -> str:
        """Name and operator of a node, for messages."""
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        return f"{node.name or '(unnamed)'} ({kind})"

    def text(self) -> str:
        """The graph as a person reads it."""
        return str(self.model.graph)

    def producer(self, value: ir.Value) -> ir.Node | None:
        """The node that makes the value."""
        return value.producer()

    def consumers(self, value: ir.Value) -> Sequence[ir.Node]:
        """The nodes that read the value."""
        return value.consumers()

    def results(self, node: ir.Node) -> Sequence[ir.Value]:
        """What the node makes."""
        return tuple(node.outputs)

    @cached_property
    def _stored(self) -> StoredMatrices:
        return StoredMatrices(self.model)

    def prune(self) -> int:
        """Drop what nothing reads. Matrices of the dropped nodes can still be looked for."""
        _ = self._stored
        return super().prune()

    def packed_rows(self, node: ir.Node) -> Array | None:
        """What MatMulNBits multiplies with, by its definition."""
        packed = packed_rows(node)
        if packed is None:
            return None
        columns = node.attributes.get_int("K", 0)
        made = np.empty((len(packed.codes), columns), np.float32)
        for rows, numbers in packed.in_parts(columns):
            made[rows] = numbers
        return made

    def stored_rows(self, rows: Array) -> KvB | None:
        """Rows of a matrix that MatMulNBits or DequantizeLinear reads."""
        return self._stored.find(rows)

    def scaled_rows(self, rows: Array) -> KvB | None:
        """Rows of a stored matrix of integers or narrow floats, with scales of their own."""
        return self._stored.find_multiples(rows)

    def factored_rows(self, rows: Array) -> tuple[KvB, Array] | None:
        """The same with factors of columns that a Mul, a Div or a DequantizeLinear reads."""
        return self._stored.find_factored(rows)

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
        return alike(one, other, self.small_constant)

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

    @property
    def facts(self) -> SymbolicShapes:
        """Shapes and integers of all values, as rules of operators are told them."""
        return self._symbols

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


def _contradict(one: Sequence[int | str | None], other: Sequence[int | str | None]) -> bool:
    """Whether two claims of one shape cannot both be true; no claim contradicts nothing."""
    if not one or not other:
        return False
    numbers = [pair for pair in zip(one, other) if all(isinstance(size, int) for size in pair)]
    return len(one) != len(other) or any(a != b for a, b in numbers)
