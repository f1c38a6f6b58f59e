"""Write the model of a plan: rows, keys and values, attention, output.

    hidden - q_proj ------------------- q_nope, rope(q_pe) -+
    hidden - kv_a -+- norm - latent -- W_UK, W_UV -- k, v   +- softmax(q k) v - o_proj
                   +- rope(k_pe), the same for all heads ---+

Each step is a class of its own, here and in `keys.py` and `attend.py`; `Model` holds what they
share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from tests.axes.attend import Attention
from tests.axes.buffers import Buffer
from tests.axes.feeding import Array
from tests.axes.keys import SMALL, KeysAndValues
from tests.axes.model import CACHED, Model, Rows
from tests.axes.plan import Plan, settled
from tests.axes.rotary import Rotary
from tests.axes.tape import Value, axes

EPSILON = 1e-6
WORDS = 19

FIXED = {"batch": ("B", 2), "query": ("S", 2)}
"""Sizes that a model may have as a number."""


def build(plan: Plan) -> onnx.ModelProto:
    """The model of a plan, settled first."""
    return Writer(Model(settled(plan))).write()


@dataclass
class Writer:
    """From the inputs to the output."""

    model: Model
    rotary: Rotary = field(init=False)

    def __post_init__(self) -> None:
        self.rotary = Rotary(self.model)

    def write(self) -> onnx.ModelProto:
        """All layers."""
        model, tape = self.model, self.model.tape
        hidden = self._hidden()
        tape.size("b", hidden)
        tape.size("s", hidden)
        for layer in range(1 if model.plan.layers == "one" else 2):
            model.layer = layer
            added = self._counted(self._layer(hidden))
            hidden = tape.along("Add", hidden, added.name)
        tape.output(hidden.name, "y", ("B", "S", model.sizes["e"]))
        made = tape.model()
        if model.plan.fixed != "none":
            _fix(made, *FIXED[model.plan.fixed])
        return made

    def _hidden(self) -> Value:
        tape, width = self.model.tape, self.model.sizes["e"]
        if self.model.plan.source == "hidden":
            return Value(tape.input("x", ("B", "S", width)), tuple("bse"))
        ids = tape.input("input_ids", ("B", "S"), TensorProto.INT64)
        table = tape.weight(tape.drawn("embed", WORDS, width), "embed_tokens")
        return Value(tape.op("Gather", table, ids), tuple("bse"))

    def _layer(self, hidden: Value) -> Value:
        model = self.model
        attention = Attention(model, KeysAndValues(model))
        if model.plan.layers == "shared" and model.layer:
            return self._projected(hidden, attention.again(self._query(hidden)))
        rows = self._new_rows(hidden)
        query = self._query(hidden)
        if model.plan.expanded:
            return self._projected(hidden, attention.cached(query, self._read(rows), self._join))
        rows = self._read(self._cached_rows(rows))
        if model.mutated("query_reads"):
            query = [self._reading(query[0], rows.latent), *query[1:]]
        return self._projected(hidden, attention.attended(query, rows))

    def _reading(self, query: Value, latent: Value) -> Value:
        """A query that depends on the rows of all keys in sight."""
        mean = self.model.tape.op("ReduceMean", latent.name, keepdims=0)
        return self.model.tape.along("Add", query, mean)

    def _counted(self, added: Value) -> Value:
        """Scaled by the length that a slice of the keys comes to: at least 4."""
        model, tape = self.model, self.model.tape
        if not model.mutated("counted") or model.key is None:
            return added
        place = next(at for at, axis in enumerate(model.key.axes) if axis in "ts")
        most = tape.op("Max", tape.size("s"), tape.ints(4))
        longer = tape.op("Concat", *[model.key.name] * 5, axis=place)
        cut = tape.op("Slice", longer, tape.ints(0), most, tape.ints(place))
        count = tape.op("Squeeze", tape.size_at(cut, place), tape.ints(0))
        return tape.along("Mul", added, tape.cast(count, tape.dtype))

    # Rows

    def _new_rows(self, hidden: Value) -> Rows:
        """Latent and rotary part of the new tokens, with all that is done before the cache."""
        model, tape = self.model, self.model.tape
        c, e, r = model.sizes["c"], model.sizes["e"], model.sizes.get("r", 0)
        down, turn = model.drawn("kv_a", e, c, fan_in=e), model.drawn("k_pe", e, r, fan_in=e)
        if not model.has_rotary:
            latent, rope = model.times(hidden, down, "kv_a", "c"), None
        elif model.plan.source_rows == "two":
            latent, rope = (
                model.times(hidden, down, "kv_a", "c"),
                model.times(hidden, turn, "k_pe", "r"),
            )
        else:
            both = model.times(hidden, np.concatenate([down, turn], axis=1), "kv_a", "l")
            latent, rope = tape.parts(both, "l", "cr")
        rows = Rows(self._ranked(latent), rope and self._ranked(rope))
        if model.plan.norm_at == "new":
            rows.latent = self._normed(rows.latent)
        if rows.rope and model.plan.rotary_at == "new":
            rows.rope = self.rotary.turned(rows.rope, "s")
        if model.plan.groups == "apart":  # what is squashed by itself is a row of its own
            halves = tape.parts(rows.latent, "c", "dd")
            rows.latent, rows.second = (tape.along("Tanh", half) for half in halves)
        return rows

    def _ranked(self, value: Value) -> Value:
        """In the rank that the rows have from here on."""
        shape = self.model.plan.row_rank.replace("r", value.axes[-1])
        return self.model.tape.arranged(value, shape)

    def _normed(self, value: Value) -> Value:
        model, tape, kind = self.model, self.model.tape, self.model.plan.norm
        if kind == "none":
            return value
        if kind == "tanh":
            return tape.along("Tanh", value)
        axis = value.place("c")
        if kind == "mean":
            value = tape.along("Sub", value, tape.reduced("ReduceMean", value.name, axis))
        square = tape.op("Mul", value.name, value.name)
        mean = tape.reduced("ReduceMean", square, axis)
        root = tape.op("Sqrt", tape.op("Add", mean, tape.number(EPSILON)))
        value = tape.along("Div", value, root)
        gain = 1 + 0.3 * model.drawn("kv_a_norm", model.sizes["c"])
        ones = len(value.axes) - 1 - axis
        stored = tape.weight(gain.reshape(-1, *(1,) * ones), model.named("kv_a_norm"))
        return tape.along("Mul", value, stored)

    def _cached_rows(self, rows: Rows) -> Rows:
        model, tape = self.model, self.model.tape
        if model.plan.cache == "none":
            parts = (rows.latent, rows.rope, rows.second)
            return Rows(*(part and model.as_keys(part) for part in parts))
        if rows.rope and model.plan.cache.endswith("joint"):
            both = tape.joined([rows.latent, rows.rope], "cr", "l")
            return Rows(*tape.parts(self._join(both, "latent", "l"), "l", "cr"))
        latent = self._join(rows.latent, "key", rows.latent.axes[-1])
        second = rows.second and self._join(rows.second, "second_key", "d")
        return Rows(latent, rows.rope and self._join(rows.rope, "value", "r"), second)

    def _join(self, new: Value, name: str, letter: str) -> Value:
        """Past rows and new ones; the result is an output, and is read from there on."""
        model, tape = self.model, self.model.tape
        kind = CACHED["expanded" if "j" in new.letters else "latent"]
        held = axes(kind[model.plan.cache_axes].format(letter))
        ours = tuple(axis.replace("t", "s") for axis in held)
        placed = tape.arranged(new, ours)
        past, present = (f"{word}.{model.layer}.{name}" for word in ("past", "present"))
        tape.input(past, model.shape(held, "P"))
        if model.mutated("past_returned"):
            tape.declare(past, model.shape(held, "P"))
        out = present if model.plan.present == "itself" else None
        if model.plan.static:
            buffer = Buffer(model, Value(past, held), placed, out)
            joined = buffer.written()
        else:
            ends = (placed.name, past) if model.mutated("order") else (past, placed.name)
            joined = tape.op("Concat", *ends, axis=held.index("t"), out=out)
        if out:
            tape.declare(joined, model.shape(held, "T"))
        else:
            tape.output(joined, present, model.shape(held, "T"))
        whole = Value(buffer.read(joined) if model.plan.static else joined, held)
        back = tuple(axis.replace("s", "t") for axis in new.axes)
        return tape.arranged(whole, back)

    def _read(self, rows: Rows) -> Rows:
        """What is done to the rows whenever they are read."""
        model = self.model
        latent, rope = rows.latent, rows.rope
        if model.plan.norm_at == "read":
            latent = self._normed(latent)
        if rope and model.plan.rotary_at == "read":
            rope = self.rotary.turned(rope, "t")
        second = rows.second and model.at("second", rows.second)
        return Rows(model.at("latent", latent), rope and model.at("k_pe", rope), second)

    # Query and output

    def _query(self, hidden: Value) -> list[Value]:
        """Parts of the query, without and with rotary embedding, as `bhs.` or `bsh.`."""
        model, tape = self.model, self.model.tape
        h, k, e = (model.sizes[letter] for letter in "hke")
        source, width = hidden, e
        if model.plan.query_rank == "some":
            down = model.drawn("q_a", e, model.sizes["q"], fan_in=e)
            source = tape.along("Tanh", model.times(hidden, down, "q_a", "q"))
            width = model.sizes["q"]
        up = 1.5 * model.drawn("q_b", width, h * k, fan_in=width)
        flat = model.times(source, up, "q_b", "hk")
        order = "bhsk" if model.plan.place == "bht" else "bshk"
        query = model.at("made_query", tape.arranged(flat, order))
        if not model.has_rotary:
            return [query]
        nope, rope = tape.parts(query, "k", "nr")
        rope = self.rotary.turned(rope, "s")
        if model.mutated("small_k_pe"):
            rope = tape.along("Mul", rope, tape.number(1 / SMALL))
        return [nope, rope]

    def _projected(self, hidden: Value, context: Value) -> Value:
        """The context `bhsv` of all heads, gated, as hidden states."""
        model, tape = self.model, self.model.tape
        h, v, e = (model.sizes[letter] for letter in "hve")
        weight = self._out_weight(h, v, e)
        context = self._gated(hidden, context)
        kind = model.plan.out
        if kind == "einsum":
            context = tape.split(context)
            equation = f"{''.join(context.axes)},hve->bse"
            stored = tape.weight(weight, model.named("o_proj"))
            return Value(tape.op("Einsum", context.name, stored, equation=equation), tuple("bse"))
        if kind == "each_head":
            each = tape.arranged(context, "bhsv")
            stored = tape.weight(weight, model.named("o_proj"))
            made = tape.op("MatMul", each.name, stored)
            return Value(tape.op("ReduceSum", made, tape.ints(1), keepdims=0), tuple("bse"))
        stored = tape.weight(weight.reshape(h * v, e), model.named("o_proj"))
        flat = tape.arranged(context, "bs(hv)")
        if kind == "matmul":
            return Value(tape.op("MatMul", flat.name, stored), tuple("bse"))
        rows = tape.arranged(flat, "(bs)(hv)")
        return tape.arranged(Value(tape.op("Gemm", rows.name, stored), ("bs", "e")), "bse")

    def _out_weight(self, h: int, v: int, e: int) -> Array:
        weight = self.model.drawn("o_proj", h, v, e, fan_in=h * v)
        if self.model.mutated("small"):
            weight[-1] /= SMALL
        return weight

    def _gated(self, hidden: Value, context: Value) -> Value:
        model, tape, kind = self.model, self.model.tape, self.model.plan.gate
        if kind == "none":
            return context
        width = "h" if kind == "heads" else "hv"
        size, e = int(np.prod([model.sizes[letter] for letter in width])), model.sizes["e"]
        gate = model.times(hidden, model.drawn("gate", e, size, fan_in=e), "gate", width)
        gate = tape.along("Sigmoid", gate)
        if kind == "heads":
            gate = tape.arranged(gate, tuple("1" if a == "v" else a for a in context.axes))
        else:
            gate = tape.arranged(gate, context.axes)
        return tape.along("Mul", context, gate.name)


def _fix(model: onnx.ModelProto, symbol: str, size: int) -> None:
    """Declare a size of inputs and outputs as a number."""
    for port in (*model.graph.input, *model.graph.output):
        for dim in port.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_value = size
