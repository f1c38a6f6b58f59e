"""Emits standard ONNX operators, and this package's own, at one place of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError, PassError
from mla_opt.graphs.onnx.emitter import set_dtype
from mla_opt.graphs.onnx.operators import OperatorBuilder
from mla_opt.graphs.protocol import BranchBody, Builder
from mla_opt.handles import Array


class OnnxBuilder(OperatorBuilder):
    """What the passes emit with: the protocol's ``Builder`` for ONNX."""

    def scalar_like(self, number: float, like: ir.Value, name: str) -> ir.Value:
        """A stored scalar of another value's element type."""
        if like.dtype is None:
            raise PassError(f"the element type of {like.name} is unknown where it has to be known")
        return self.constant(np.asarray(number, dtype=like.dtype.numpy()), name)

    def scaled(self, value: ir.Value, number: float, like: ir.Value, name: str) -> ir.Value:
        """The value times a number; of bfloat16, times its rounding and times the rest."""
        factor = self.scalar_like(number, like, "scale")
        if like.dtype != ir.DataType.BFLOAT16:
            return self.multiply(value, factor, name)
        rest = number - float(np.asarray(number, like.dtype.numpy()))
        if not rest:
            return self.multiply(value, factor, name)
        correction = self.multiply(
            value, self.scalar_like(rest, like, "scale_rest"), f"{name}_rest"
        )
        return self.add(self.multiply(value, factor, f"{name}_rounded"), correction, name)

    def declare_like(self, value: ir.Value, like: ir.Value) -> None:
        """Note that a value has another's element type, where the file does not say."""
        if value.dtype is None:
            set_dtype(value, like.dtype)

    def is_boolean(self, value: ir.Value) -> bool:
        """Whether the element type is boolean."""
        return value.dtype == ir.DataType.BOOL

    # Standard operators

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        """Size of one axis, int64 ``[1]``."""
        if self._model.opset_imports[""] < 15:
            whole = self._one("Shape", [value], "shape")
            whole.dtype = ir.DataType.INT64
            return self.gather(whole, (axis,), 0, f"axis{axis}")
        end = {} if axis == -1 else {"end": axis + 1}
        sizes = self._one("Shape", [value], f"axis{axis}", start=axis, **end)
        sizes.dtype = ir.DataType.INT64
        return sizes

    def matmul(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """Matrix product over the last two axes."""
        return self._one("MatMul", [left, right], name)

    def add(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """Sum, broadcasting."""
        return self._one("Add", [left, right], name)

    def subtract(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """Difference, broadcasting."""
        return self._one("Sub", [left, right], name)

    def positions(self, count: ir.Value, name: str) -> ir.Value:
        """``0 .. count - 1``, int64."""
        start, step = (self.constant(np.asarray(n, np.int64), f"{name}_{n}") for n in (0, 1))
        end = self._one("Squeeze", [count, self.integers(0)], f"{name}_end")
        return self._one("Range", [start, end, step], name)

    def multiply(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """Product, broadcasting."""
        return self._one("Mul", [left, right], name)

    def divide(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """``left / right``, broadcasting."""
        return self._one("Div", [left, right], name)

    def greater(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """True where ``left > right``."""
        return self._boolean("Greater", [left, right], name)

    def negate(self, condition: ir.Value, name: str) -> ir.Value:
        """True where ``condition`` is false."""
        return self._boolean("Not", [condition], name)

    def both(self, left: ir.Value, right: ir.Value, name: str) -> ir.Value:
        """True where both are."""
        return self._boolean("And", [left, right], name)

    def _boolean(self, op_type: str, inputs: Sequence[ir.Value], name: str) -> ir.Value:
        value = self._one(op_type, inputs, name)
        value.dtype = ir.DataType.BOOL
        return value

    def where(self, condition: ir.Value, chosen: ir.Value, other: ir.Value, name: str) -> ir.Value:
        """``chosen`` where ``condition``, else ``other``."""
        (value,) = self._emit("Where", [condition, chosen, other], name)
        set_dtype(value, chosen.dtype)
        return value

    def concat(self, parts: Sequence[ir.Value], axis: int, name: str) -> ir.Value:
        """Concatenation."""
        return self._one("Concat", parts, name, axis=axis)

    def split(
        self, value: ir.Value, sizes: Sequence[int], axis: int, names: Sequence[str]
    ) -> tuple[ir.Value, ...]:
        """Consecutive pieces of the given sizes."""
        inputs = [value, self.integers(*sizes)]
        pieces = self._emit(
            "Split", inputs, "split", {"axis": axis}, outputs=[f"/{n}" for n in names]
        )
        for piece in pieces:
            set_dtype(piece, value.dtype)
        return pieces

    def gather(self, value: ir.Value, indices: Sequence[int], axis: int, name: str) -> ir.Value:
        """The given positions of one axis, in order."""
        return self._one("Gather", [value, self.integers(*indices)], name, axis=axis)

    def slice(self, value: ir.Value, start: int, end: int, axis: int, name: str) -> ir.Value:
        """Positions ``start`` to ``end`` of one axis."""
        bounds = [self.integers(start), self.integers(end), self.integers(axis)]
        return self._one("Slice", [value, *bounds], name)

    def transpose(self, value: ir.Value, permutation: Sequence[int], name: str) -> ir.Value:
        """Axes permuted."""
        return self._one("Transpose", [value], name, perm=list(permutation))

    def reshape(self, value: ir.Value, shape: ir.Value, name: str) -> ir.Value:
        """Same elements in another shape."""
        return self._one("Reshape", [value, shape], name)

    def unsqueeze(self, value: ir.Value, axis: int, name: str) -> ir.Value:
        """One more axis of size one."""
        return self._one("Unsqueeze", [value, self.integers(axis)], name)

    def expand(self, value: ir.Value, shape: ir.Value, name: str) -> ir.Value:
        """Axes of size one repeated; ``shape`` may have ones where nothing is repeated."""
        return self._one("Expand", [value, shape], name)

    def put(self, whole: ir.Value, places: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        """``whole [B, 1, M, X]`` with ``rows [B, 1, S, X]`` in ``places [B or 1, 1, S, 1]``."""
        sizes = [self.dimension(rows, axis) for axis in range(4)]
        repeated = self.expand(places, self.concat(sizes, 0, "size_of_rows"), "places_of_rows")
        return self._one("ScatterElements", [whole, repeated, rows], name, axis=2)

    def first(self, value: ir.Value, count: ir.Value, axis: int, name: str) -> ir.Value:
        """The first ``count`` places of one axis."""
        return self._one("Slice", [value, self.integers(0), count, self.integers(axis)], name)

    def put_first(self, whole: ir.Value, part: ir.Value, name: str) -> ir.Value:
        """``whole`` with ``part`` in the place of as much of the first axis, from its front on."""
        rest = [self.dimension(part, 0), self.integers(1 << 62), self.integers(0)]
        return self.concat((part, self._one("Slice", [whole, *rest], f"{name}_rest")), 0, name)

    def as_count(self, number: ir.Value) -> ir.Value:
        """A number that the graph computes as an int64 vector of one element."""
        (wide,) = self._emit("Cast", [number], "count", {"to": ir.DataType.INT64})
        wide.dtype = ir.DataType.INT64
        return self._one("Reshape", [wide, self.integers(-1)], "count")

    def put_each(self, whole: ir.Value, places: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        """``whole [B, M, ...]`` with ``rows [B, S, ...]`` at ``places [B, S, 2]``."""
        return self._one("ScatterND", [whole, places, rows], name)

    def softmax(self, value: ir.Value, name: str) -> ir.Value:
        """Softmax over the last axis."""
        return self._one("Softmax", [value], name, axis=-1)

    def row_maximum(self, value: ir.Value, name: str) -> ir.Value:
        """Maximum over the last axis, kept as an axis of size one."""
        if self._model.opset_imports[""] >= 18:
            return self._one("ReduceMax", [value, self.integers(-1)], name, keepdims=1)
        return self._one("ReduceMax", [value], name, axes=[-1], keepdims=1)

    def cast_like(self, value: ir.Value, like: ir.Value, name: str) -> ir.Value:
        """The value in another's element type, which must be known."""
        if like.dtype is None:
            raise PassError(f"the element type of {like.name} is unknown where it has to be known")
        (cast_value,) = self._emit("Cast", [value], name, {"to": like.dtype})
        cast_value.dtype = like.dtype
        return cast_value

    def cast(self, value: ir.Value, dtype: str, name: str) -> ir.Value:
        """The value in a type by NumPy's name; itself where it has that."""
        kind = ir.DataType.from_numpy(np.dtype(dtype))
        if value.dtype == kind:
            return value
        (made,) = self._emit("Cast", [value], name, {"to": kind})
        made.dtype = kind
        return made

    def largest(self, value: ir.Value, name: str) -> ir.Value:
        """Largest element of an integer vector, int64 ``[1]``."""
        (wide,) = self._emit("Cast", [value], f"{name}_wide", {"to": ir.DataType.INT64})
        wide.dtype = ir.DataType.INT64
        if self._model.opset_imports[""] >= 18:
            return self._one("ReduceMax", [wide, self.integers(0)], name, keepdims=1)
        return self._one("ReduceMax", [wide], name, axes=[0], keepdims=1)

    def widen_mask(self, bias: ir.Value, columns: ir.Value, like: ir.Value, name: str) -> ir.Value:
        """A bias of the same kind with as many columns, those beyond its own forbidden."""
        if self.is_boolean(bias):
            never = self.constant(np.array(False), f"{name}_never")
        else:
            never = self.scalar_like(float("-inf"), like, f"{name}_never")
        own = self.dimension(bias, -1)
        uniform = self._boolean("Equal", [own, self.integers(1)], f"{name}_is_uniform")
        missing = self.subtract(columns, own, f"{name}_missing")
        count = self.where(uniform, self.integers(0), missing, f"{name}_count")
        sizes = self._one("Shape", [bias], f"{name}_sizes")
        sizes.dtype = ir.DataType.INT64
        others = self.slice(sizes, 0, -1, 0, f"{name}_other_sizes")
        beyond = self.expand(
            never, self.concat([others, count], 0, f"{name}_shape"), f"{name}_rest"
        )
        return self.concat([bias, beyond], -1, f"{name}_wide")

    # What TensorRT has layers for (mla_opt.emission.prompt)

    def constant_like(self, array: Array, like: ir.Value, name: str) -> ir.Value:
        """A stored tensor of another value's element type."""
        if like.dtype is None:
            raise PassError(f"the element type of {like.name} is unknown where it has to be known")
        return self.constant(array.astype(like.dtype.numpy()), name)

    def fused_attention(
        self,
        query: ir.Value,
        keys: ir.Value,
        values: ir.Value,
        *,
        scale: float,
        bias: ir.Value | None,
        causal: bool,
        name: str,
    ) -> ir.Value:
        """ONNX ``Attention``, from opset 23 on, of ``[B, H, S, D]`` to ``[B, H, T, D]``."""
        self._require_opset(23, "Attention")
        operands = [query, keys, values, *([] if bias is None else [bias])]
        return self._one("Attention", operands, name, scale=float(scale), is_causal=int(causal))

    def write_rows(self, buffer: ir.Value, rows: ir.Value, start: ir.Value, name: str) -> ir.Value:
        """ONNX ``TensorScatter``, from opset 24 on; ``start`` has a place for each sequence."""
        self._require_opset(24, "TensorScatter")
        where = self._emit("Cast", [start], f"{name}_start", {"to": ir.DataType.INT64})[0]
        where.dtype = ir.DataType.INT64
        return self._one("TensorScatter", [buffer, rows, where], name, axis=2)

    def _require_opset(self, opset: int, op_type: str) -> None:
        if self._model.opset_imports[""] < opset:
            raise InputError(
                f"{op_type} is there from opset {opset} on, and the model has"
                f" {self._model.opset_imports['']}; raise it (mla_opt.graphs.onnx.opset.at_least)"
            )

    # Branches

    def branch(
        self,
        condition: ir.Value,
        when_true: BranchBody,
        when_false: BranchBody,
        name: str,
    ) -> tuple[ir.Value, ...]:
        """A conditional whose branches return the same outputs."""
        graphs = {
            "then_branch": self._branch_graph(when_true, f"{name}/then"),
            "else_branch": self._branch_graph(when_false, f"{name}/else"),
        }
        outputs = graphs["else_branch"].outputs
        values = self._emit(
            "If", [condition], name, graphs, outputs=[f"/{index}" for index in range(len(outputs))]
        )
        for value, output in zip(values, outputs):
            set_dtype(value, output.dtype)
        return values

    def _branch_graph(self, body: BranchBody, name: str) -> ir.Graph:
        inner = OnnxBuilder(
            self._model,
            None,
            f"{self._prefix}/{name}",
            self._names,
            style=self._style,
            aside=self._aside,
        )
        outputs = cast(Sequence[ir.Value], body(cast(Builder, inner)))
        return ir.Graph(
            inputs=[],
            outputs=outputs,
            nodes=inner.emitted,
            opset_imports=self._model.opset_imports,
            name=f"{self._prefix}/{name}",
        )
