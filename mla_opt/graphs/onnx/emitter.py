"""Nodes and stored tensors at one place of an ONNX model, under names of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from mla_opt.aside import Aside
from mla_opt.graphs.onnx.made_tensors import tensor_of
from mla_opt.handles import Array
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle


class Emitter:
    """Emits nodes in front of a node of the main graph, or into a branch of its own.

    Stored tensors always go to the main graph, where the branches see them too. Names are made
    unique within the model.
    """

    def __init__(
        self,
        model: ir.Model,
        before: ir.Node | None,
        prefix: str,
        names: set[str],
        *,
        style: BodyStyle = ONNX_RUNTIME,
        aside: Aside | None = None,
    ) -> None:
        self._model = model
        self._before = before
        self._prefix = prefix
        self._names = names
        self._style = style
        self._aside = aside or Aside()
        self.emitted: list[ir.Node] = []

    # Emission

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: Sequence[str] = ("",),
        domain: str = "",
        overload: str = "",
    ) -> tuple[ir.Value, ...]:
        values = [ir.Value(name=self._unique(f"{name}{suffix}")) for suffix in outputs]
        node = ir.node(
            op_type,
            inputs,
            attributes=dict(attributes or {}),
            domain=domain,
            overload=overload,
            outputs=values,
            name=self._unique(f"{name}/{op_type}"),
        )
        if self._before is not None:
            self._model.graph.insert_before(self._before, node)
        self.emitted.append(node)
        return tuple(values)

    def _one(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: Any
    ) -> ir.Value:
        (value,) = self._emit(op_type, inputs, name, attributes)
        if inputs:
            set_dtype(value, inputs[0].dtype)
        return value

    def _unique(self, name: str) -> str:
        full = base = f"{self._prefix}/{name}"
        count = 1
        while full in self._names:
            count += 1
            full = f"{base}_{count}"
        self._names.add(full)
        return full

    # Stored tensors

    def constant(self, array: Array, name: str, dtype: np.dtype[Any] | None = None) -> ir.Value:
        """A stored tensor of the main graph; a large one is converted whenever it is read."""
        full = self._unique(name)
        tensor = tensor_of(self._aside.keep(array), array.dtype if dtype is None else dtype, full)
        value = ir.Value(
            name=full,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._model.graph.initializers[full] = value
        return value

    def integers(self, *numbers: int) -> ir.Value:
        """An int64 vector, stored once per model."""
        name = "mla_opt/int64/" + "_".join(map(str, numbers))
        while (known := self._model.graph.initializers.get(name)) is not None:
            if _holds(known, numbers):
                return known
            name += "_"  # a tensor that the file brought along under this name
        if name in self._names:
            name = self._unique(name)
        value = ir.Value(
            name=name,
            shape=ir.Shape([len(numbers)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.Tensor(np.asarray(numbers, dtype=np.int64), name=name),
        )
        self._model.graph.initializers[name] = value
        self._names.add(name)
        return value


def set_dtype(value: ir.Value, dtype: ir.DataType | None) -> None:
    """Declare an element type, unless it is unknown: a type without one cannot be stored."""
    if dtype is not None:
        value.dtype = dtype


def _holds(value: ir.Value, numbers: tuple[int, ...]) -> bool:
    """Whether a stored tensor is just this vector, whoever has stored it."""
    tensor = value.const_value
    return (
        tensor is not None
        and not value.is_graph_input()
        and tensor.dtype == ir.DataType.INT64
        and tuple(tensor.shape.numpy()) == (len(numbers),)
        and tuple(tensor.numpy().tolist()) == numbers
    )
