"""Edits of a model's interface: its inputs, its outputs, and who reads what shape they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.onnx.builder import OnnxBuilder
from mla_opt.graphs.onnx.edits import Edits, take_over
from mla_opt.graphs.protocol import Size
from mla_opt.handles import Value


class InterfaceEdits(Edits):
    """The edits of a graph that change what it takes and returns."""

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

    def declare_shape(self, value: ir.Value, shape: Sequence[int | str | None]) -> None:
        """Declare the shape of an input or an output anew."""
        value.shape = ir.Shape(shape)

    def forget_shapes(self) -> None:
        """Drop what the file said of shapes inside the graph, which was true of other inputs."""
        ends = {*self.model.graph.inputs, *self.model.graph.outputs}
        for node in self._all_nodes():
            for value in node.outputs:
                if value not in ends:
                    value.shape = None

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

    def drop_input(self, value: ir.Value) -> None:
        """Take an input no more that nothing reads."""
        self.model.graph.inputs.remove(value)

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
        take_over(new, old)
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

    def replace_shape(self, reader: ir.Node, sizes: Sequence[Size]) -> None:
        """Put a shape together in front of ``reader``, for those who read it."""
        (old,) = reader.outputs
        builder = self.builder(reader, f"{old.name}/mla")
        parts = [_size(builder, size) for size in sizes[_slice_of(reader)]]
        returned = old.is_graph_output()  # what takes its name has to be made here
        whole = parts[0] if len(parts) == 1 and not returned else builder.concat(parts, 0, "shape")
        whole.dtype = ir.DataType.INT64
        for use in tuple(old.uses()):
            use.node.replace_input_with(use.idx, whole)
        if returned:
            self.replace_output(old, whole, self.declared_shape(old) or None)


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


def _slice_of(shape: ir.Node) -> slice:
    """The axes that a Shape node reads."""
    start, end = shape.attributes.get("start"), shape.attributes.get("end")
    return slice(start.value if start else None, end.value if end else None)
