"""Buffers of a fixed number of rows, and the ways in which rows are put into them by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from tests.axes.model import Model
from tests.axes.tape import Value

AHEAD = {"list": "t", "start": "t", "each": "bt", "heads": "bjt", "context": "bjt"}
"""The axes that coordinates are of, by the plan's word; other words have no coordinates."""

OF_EACH = ("each", "heads", "elements_each", "context", "rows")
"""Words by which each sequence has places of its own."""

CONTEXT = "com.test.context"
"""Domain of the local function that scatters by position, as efficient-transformers has one."""


def places(model: Model) -> Value:
    """The places of the new rows: `s`, or `bs`."""
    tape, put = model.tape, model.plan.put
    if put == "start":
        start = tape.input("start_pos", (), TensorProto.INT64)
        count = tape.op("Squeeze", tape.size("s"), tape.ints(0))
        return Value(
            tape.op("Range", start, tape.op("Add", start, count), tape.whole(1)), tuple("s")
        )
    if put == "rows":
        count = tape.op("Squeeze", tape.size("s"), tape.ints(0))
        behind = tape.op("Range", tape.whole(0), count, tape.whole(1))
        first = tape.op("Unsqueeze", starts(model), tape.ints(1))
        return Value(tape.op("Add", first, behind), tuple("bs"))
    if put in OF_EACH:
        return Value(tape.input("position_ids", ("B", "S"), TensorProto.INT64), tuple("bs"))
    return Value(tape.input("cache_position", ("S",), TensorProto.INT64), tuple("s"))


def starts(model: Model) -> str:
    """The place of the first new row of each sequence."""
    return model.tape.input("write_start", ("B",), TensorProto.INT64)


@dataclass(frozen=True)
class Buffer:
    """One buffer, the rows that go into it, and the output that it becomes."""

    model: Model
    held: Value
    new: Value
    out: str | None

    def read(self, written: str) -> str:
        """What the attention reads of a buffer: all of it, or row 0 in the place of later rows."""
        tape = self.model.tape
        if self.model.plan.read == "whole":
            return written
        tape.functions.setdefault("CtxGather", context_gather(tape.opset))
        operands = (written, places(self.model).name)
        return tape.many("CtxGather", 1, *operands, domain=CONTEXT)[0]

    def written(self) -> str:
        """New rows in their places in the buffer."""
        put, axes = self.model.plan.put, self.held.axes
        if put == "rows":
            return self._turned("bt", self._in_a_row)
        if put in ("elements", "elements_each"):
            return self._by_element()
        if put == "context" and len(axes) == 4 and axes[0] == "b" and axes[2] == "t":
            return self._called()
        if "j" not in axes:  # rows, or heads and width in one axis
            return self._turned(AHEAD[put].replace("j", ""), self._by_index)
        return self._turned(AHEAD[put], self._by_index)

    def _turned(self, ahead: str, write: Callable[[str, str, str | None, str], str]) -> str:
        """Write with some axes in front, and turn the result back."""
        tape, axes = self.model.tape, self.held.axes
        order = [axes.index(axis) for axis in ahead]
        order += [place for place in range(len(axes)) if place not in order]
        if order == sorted(order):
            return write(self.held.name, self.new.name, self.out, ahead)
        first, rows = (
            tape.op("Transpose", each.name, perm=order) for each in (self.held, self.new)
        )
        put = write(first, rows, None, ahead)
        back = [int(place) for place in np.argsort(order)]
        return tape.op("Transpose", put, perm=back, out=self.out)

    def _by_index(self, buffer: str, rows: str, out: str | None, ahead: str) -> str:
        tape = self.model.tape
        return tape.op("ScatterND", buffer, self._coordinates(ahead), rows, out=out)

    def _in_a_row(self, buffer: str, rows: str, out: str | None, ahead: str) -> str:
        return self.model.tape.op(
            "TensorScatter", buffer, rows, starts(self.model), axis=1, out=out
        )

    def _by_element(self) -> str:
        """Indices of the shape of the rows."""
        tape, axes, given = self.model.tape, self.held.axes, places(self.model)
        others = [place for place, axis in enumerate(axes) if axis not in ("t", *given.axes)]
        if "b" in given.axes and axes.index("b") > axes.index("t"):
            given = tape.arranged(given, "sb")
        index = tape.op("Unsqueeze", given.name, tape.ints(*others)) if others else given.name
        wide = tape.op("Expand", index, tape.op("Shape", self.new.name))
        return tape.op(
            "ScatterElements",
            self.held.name,
            wide,
            self.new.name,
            axis=axes.index("t"),
            out=self.out,
        )

    def _coordinates(self, ahead: str) -> str:
        """Sequence, head and place, as far as they are ahead: `[B, J, S, 3]`."""
        tape, given = self.model.tape, places(self.model)
        if ahead == "t":
            return tape.op("Unsqueeze", given.name, tape.ints(1))
        shape = tape.op("Concat", *(tape.size(axis.replace("t", "s")) for axis in ahead), axis=0)
        columns = []
        for place, axis in enumerate(ahead[:-1]):
            counted = tape.op("Squeeze", tape.size(axis), tape.ints(0))
            whole = tape.op("Range", tape.whole(0), counted, tape.whole(1))
            ones = [each for each in range(len(ahead)) if each != place]
            columns.append(tape.op("Unsqueeze", whole, tape.ints(*ones)))
        ones = list(range(1, len(ahead) - 1))
        columns.append(tape.op("Unsqueeze", given.name, tape.ints(*ones)) if ones else given.name)
        full = [tape.op("Expand", each, shape) for each in columns]
        last = tape.ints(len(ahead))
        return tape.op(
            "Concat", *(tape.op("Unsqueeze", each, last) for each in full), axis=len(ahead)
        )

    def _called(self) -> str:
        """By a local function."""
        tape = self.model.tape
        tape.functions.setdefault("CtxScatter", context_scatter(tape.opset))
        operands = (self.held.name, places(self.model).name, self.new.name)
        return tape.many("CtxScatter", 1, *operands, out=self.out, domain=CONTEXT)[0]


def context_gather(opset: int) -> helper.FunctionProto:
    """Rows of `[B, J, M, D]` up to the last of the positions `[B, S]`, and row 0 for later ones."""
    node = helper.make_node
    whole = {"zero": [0], "one": [1], "front": [0, 1], "last": [-1]}
    constants = [node("Constant", [], [name], value_ints=value) for name, value in whole.items()]
    body = [
        node("Shape", ["data"], ["whole"], start=0, end=3),
        node("Shape", ["data"], ["rows"], start=2, end=3),
        *(node("Squeeze", [name], [f"{name}_scalar"]) for name in ("zero", "one", "rows")),
        node("Range", ["zero_scalar", "rows_scalar", "one_scalar"], ["places"]),
        node("Unsqueeze", ["places", "front"], ["each"]),
        node("ReduceMax", ["positions", "one"], ["most"], keepdims=1)
        if opset >= 18
        else node("ReduceMax", ["positions"], ["most"], axes=[1], keepdims=1),
        node("Unsqueeze", ["most", "one"], ["limit"]),
        node("Greater", ["each", "limit"], ["later"]),
        node("Where", ["later", "zero", "each"], ["chosen"]),
        node("Expand", ["chosen", "whole"], ["wide"]),
        node("Unsqueeze", ["wide", "last"], ["indices"]),
        node("GatherND", ["data", "indices"], ["read"], batch_dims=2),
    ]
    return helper.make_function(
        CONTEXT,
        "CtxGather",
        ["data", "positions"],
        ["read"],
        [*constants, *body],
        [helper.make_opsetid("", opset)],
    )


def context_scatter(opset: int) -> helper.FunctionProto:
    """Rows `[B, J, S, D]` put into `[B, J, M, D]` at positions `[B, S]`, of standard operators."""
    node = helper.make_node
    size = [
        node("Shape", ["data"], ["batch"], start=0, end=1),
        node("Shape", ["data"], ["heads"], start=1, end=2),
        node("Shape", ["positions"], ["tokens"], start=1, end=2),
    ]
    whole = {"zero": [0], "one": [1], "b_axes": [1, 2, 3], "h_axes": [0, 2, 3], "s_axes": [1, 3]}
    constants = [node("Constant", [], [name], value_ints=value) for name, value in whole.items()]
    single = [
        node("Squeeze", [name], [f"{name}_scalar"]) for name in ("zero", "one", "batch", "heads")
    ]
    shape = [node("Concat", ["batch", "heads", "tokens", "one"], ["shape"], axis=0)]
    columns = [
        node("Range", ["zero_scalar", "batch_scalar", "one_scalar"], ["b_range"]),
        node("Range", ["zero_scalar", "heads_scalar", "one_scalar"], ["h_range"]),
        node("Unsqueeze", ["b_range", "b_axes"], ["b_place"]),
        node("Unsqueeze", ["h_range", "h_axes"], ["h_place"]),
        node("Unsqueeze", ["positions", "s_axes"], ["s_place"]),
        *(node("Expand", [f"{each}_place", "shape"], [f"{each}_column"]) for each in "bhs"),
        node("Concat", ["b_column", "h_column", "s_column"], ["indices"], axis=3),
        node("ScatterND", ["data", "indices", "updates"], ["written"]),
    ]
    return helper.make_function(
        CONTEXT,
        "CtxScatter",
        ["data", "positions", "updates"],
        ["written"],
        [*constants, *size, *single, *shape, *columns],
        [helper.make_opsetid("", opset)],
    )
