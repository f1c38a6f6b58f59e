"""Emits standard operators of one opset version, for whatever element type the query has."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError

CAST_LIKE_SINCE = 15
REDUCE_AXES_INPUT_SINCE = 18


class BodyTape:
    """A recorder of the nodes of one function body.

    It hides what differs between opset versions, and makes constants of the element type of
    ``query``, which the body does not know.
    """

    def __init__(self, query: ir.Value, opset_version: int, element_type: ir.DataType) -> None:
        self.opset_version = opset_version
        self._query = query
        self._element_type = element_type
        self._tape = ir.tape.Tape()
        self._numbers = itertools.count()

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes recorded so far, in order."""
        return list(self._tape.nodes)

    def op(
        self, op_type: str, *inputs: ir.Value, **attributes: int | list[int] | ir.Attr
    ) -> ir.Value:
        """Record a node of the default domain and return its output."""
        name = f"{op_type}_{next(self._numbers)}"
        output = ir.Value(name=name)
        typed = {name: _typed(name, given) for name, given in attributes.items()}
        return self._tape.op(op_type, inputs, typed, name=name, output=output)

    def choose(
        self,
        condition: ir.Value,
        then: Callable[[BodyTape], ir.Value],
        otherwise: Callable[[BodyTape], ir.Value],
    ) -> ir.Value:
        """Record an If whose branches are what the two functions record on a tape of their own."""
        branches = {"then_branch": self._branch(then), "else_branch": self._branch(otherwise)}
        attributes = {name: ir.AttrGraph(name, graph) for name, graph in branches.items()}
        return self.op("If", condition, **attributes)

    def _branch(self, record: Callable[[BodyTape], ir.Value]) -> ir.Graph:
        tape = BodyTape(self._query, self.opset_version, self._element_type)
        # A branch sees the values around it, so its own need other names.
        tape._numbers = self._numbers
        output = record(tape)
        return ir.Graph([], [output], nodes=tape.nodes, name=f"branch_{next(self._numbers)}")

    def ints(self, *numbers: int) -> ir.Value:
        """Return a one-dimensional int64 constant."""
        return self.op("Constant", value_ints=list(numbers))

    def index(self, number: int) -> ir.Value:
        """Return an int64 scalar."""
        return self.op("Constant", value_int=number)

    def element(self, number: float) -> ir.Value:
        """Return a scalar of the query's element type."""
        value = ir.tensor(np.array(number, np.float32))
        return self.like_query(self.op("Constant", value=ir.AttrTensor("value", value)))

    def float_attribute(self, name: str) -> ir.Value:
        """Return the node's attribute ``name`` as a scalar of the query's element type."""
        reference = ir.RefAttr("value_float", name, ir.AttributeType.FLOAT)
        return self.like_query(self.op("Constant", value_float=reference))

    def int_attribute(self, name: str) -> ir.Value:
        """Return the node's attribute ``name`` as an int64 vector of one element."""
        reference = ir.RefAttr("value_int", name, ir.AttributeType.INT)
        return self.op("Reshape", self.op("Constant", value_int=reference), self.ints(1))

    def like_query(self, value: ir.Value) -> ir.Value:
        """Convert to the query's element type."""
        if self.opset_version < CAST_LIKE_SINCE:
            return self.op("Cast", value, to=int(self._element_type))
        return self.op("CastLike", value, self._query)

    def like(self, value: ir.Value, other: ir.Value) -> ir.Value:
        """Convert to the element type of ``other``.

        Raises:
            InputError: the opset has no operator that could do it without knowing the type.
        """
        if self.opset_version < CAST_LIKE_SINCE:
            raise InputError(
                f"a cache of another type than the query needs opset {CAST_LIKE_SINCE};"
                f" the model has {self.opset_version}"
            )
        return self.op("CastLike", value, other)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return one dimension as a scalar."""
        return self.op("Gather", self.op("Shape", value), self.index(axis))

    def sizes(self, value: ir.Value, *axes: int) -> ir.Value:
        """Return some dimensions as a vector."""
        return self.op("Gather", self.op("Shape", value), self.ints(*axes))

    def count(self, start: ir.Value, stop: ir.Value) -> ir.Value:
        """Return the int64 vector start, start + 1, ..., stop - 1."""
        return self.op("Range", start, stop, self.index(1))

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """Reshape; 0 keeps a dimension and -1 takes the rest."""
        return self.op("Reshape", value, self.ints(*shape))

    def reduce_max(self, value: ir.Value) -> ir.Value:
        """Maximum over the last axis, which stays with size one."""
        if self.opset_version < REDUCE_AXES_INPUT_SINCE:
            return self.op("ReduceMax", value, axes=[-1], keepdims=1)
        return self.op("ReduceMax", value, self.ints(-1), keepdims=1)

    def swap_last(self, value: ir.Value) -> ir.Value:
        """Transpose the last two of four axes."""
        return self.op("Transpose", value, perm=[0, 1, 3, 2])

    def columns_before(self, value: ir.Value, stop: ir.Value) -> ir.Value:
        """Keep the first ``stop`` columns of the last of four axes."""
        return self.op("Slice", value, self.ints(0), stop, self.ints(3))

    def columns_from(self, value: ir.Value, start: ir.Value) -> ir.Value:
        """Keep the columns from ``start`` on."""
        return self.op("Slice", value, start, self.ints(np.iinfo(np.int64).max), self.ints(3))


def _typed(name: str, given: int | list[int] | ir.Attr) -> ir.Attr:
    """An attribute by its type: guessing that takes longer than all else about a node."""
    if isinstance(given, ir.Attr):
        return given
    return ir.AttrInt64(name, given) if isinstance(given, int) else ir.AttrInt64s(name, given)
