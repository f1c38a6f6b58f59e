"""Masks: given or made from positions, boolean or additive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from tests.axes.buffers import OF_EACH, places
from tests.axes.model import Model
from tests.axes.rotary import past_of
from tests.axes.tape import Value


@dataclass(frozen=True)
class Masks:
    """What keeps queries from keys."""

    model: Model

    @property
    def kind(self) -> str:
        if self.model.plan.static:
            return "static"
        return "none" if self.model.plan.mask == "flag" else self.model.plan.mask

    def applied(self, scores: Value) -> Value:
        """Scores `bhst` with the mask of the plan."""
        tape, kind = self.model.tape, self.kind
        if kind == "none":
            return scores
        if kind in ("boolean", "static"):
            return Value(
                tape.op("Where", self._seen(), scores.name, tape.number(self._fill())), scores.axes
            )
        return tape.along("Add", scores, self._additive())

    def adds_flat(self) -> bool:
        """Whether the mask can be what a baddbmm starts from."""
        return self.kind not in ("none", "boolean", "static")

    def added_flat(self, scores: Value) -> Value:
        """Scores `(bh)st` plus the mask of every head."""
        if not self.adds_flat():
            return scores
        tape = self.model.tape
        shape = tape.op("Concat", tape.ints(1), tape.size("h"), tape.ints(1, 1), axis=0)
        wide = tape.op("Expand", self._additive(), shape)
        if self.kind == "causal":  # one for all sequences so far
            more = tape.op("Concat", tape.size("b"), tape.ints(1, 1, 1), axis=0)
            wide = tape.op("Expand", wide, more)
        flat = tape.arranged(Value(wide, tuple("bhst")), "(bh)st")
        return tape.along("Add", scores, flat.name)

    def for_fused(self) -> str | None:
        """The mask as an operator takes it: boolean, or to be added."""
        if self.kind == "none":
            return None
        if self.kind in ("boolean", "static"):
            seen = self._seen()
            if self.kind == "static" and self.model.plan.put not in OF_EACH:
                return self.model.tape.op("Unsqueeze", seen, self.model.tape.ints(0, 1))
            return seen
        return self._additive(four=True)

    def _fill(self) -> float:
        kind = self.model.plan.fill
        if kind == "infinite":
            return -np.inf
        if kind == "large":
            return -1e4
        # fused operators take the lowest number for no key at all, and return zeros
        lowest = float(np.finfo(self.model.tape.dtype).min)
        return lowest / 4 if self.model.plan.fused else lowest

    def _additive(self, *, four: bool = False) -> str:
        tape = self.model.tape
        if self.kind == "additive":
            return tape.input("mask", ("B", 1, "S", self._total()))
        zero, fill = tape.number(0.0), tape.number(self._fill())
        made = tape.op("Where", self._seen(), zero, fill)
        if self.kind == "causal":
            return tape.op("Unsqueeze", made, tape.ints(0, 1))
        return made

    def _total(self) -> str:
        return "S" if self.model.plan.cache == "none" else "T"

    def _seen(self) -> str:
        """True where a query sees a key: `b1st`, or `st` where all sequences are alike."""
        tape = self.model.tape
        if self.kind == "boolean":
            return tape.input("mask", ("B", 1, "S", self._total()), TensorProto.BOOL)
        if self.kind == "static" and self.model.plan.put in OF_EACH:
            seen = self._until(places(self.model).name, axis=2)
            return tape.op("Unsqueeze", seen, tape.ints(1))
        if self.kind == "static":
            return self._until(places(self.model).name)
        ordered = self._causal()
        if self.kind == "causal":
            return ordered
        lengths = tape.input("attention_mask", ("B", self._total()), TensorProto.INT64)
        exists = tape.op(
            "Unsqueeze", tape.op("Cast", lengths, to=TensorProto.BOOL), tape.ints(1, 2)
        )
        return tape.op("And", exists, ordered)

    def _causal(self) -> str:
        tape = self.model.tape
        start = past_of(self.model)
        end = tape.op("Add", start, tape.size("s"))
        ends = (tape.op("Squeeze", each, tape.ints(0)) for each in (start, end))
        return self._until(tape.op("Range", *ends, tape.whole(1)))

    def _until(self, positions: str, axis: int = 1) -> str:
        """Keys up to each position."""
        tape, model = self.model.tape, self.model
        if model.plan.static:
            total = tape.whole(model.sizes["t"])
        else:
            total = tape.op("Squeeze", tape.op("Add", past_of(model), tape.size("s")), tape.ints(0))
        keys = tape.op("Range", tape.whole(0), total, tape.whole(1))
        return tape.op("LessOrEqual", keys, tape.op("Unsqueeze", positions, tape.ints(axis)))
