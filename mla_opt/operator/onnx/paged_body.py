"""``PagedAttention`` over latent rows in standard operators, in float32: what its contract says.

It attends from every token to the rows of all sequences, and masks those that are not its own: far
from fast, and plain. It stands in for the operator where a model is verified, as ONNX Runtime's CPU
provider has no kernel of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mla_opt.operator.paged_attention import CODES, INPUTS

_NEVER = -1e30
_RANGES = {"int8": (-128.0, 127.0), "float8_e4m3fn": (-448.0, 448.0)}


class PagedBody:
    """The nodes that stand in for one node; ``output`` and ``cache`` are what they make."""

    def __init__(self, node: ir.Node) -> None:
        self._tape = ir.tape.Tape()
        self._operands: Mapping[str, ir.Value] = {
            name: value for name, value in zip(INPUTS, node.inputs) if value is not None
        }
        self._prefix = node.name or str(node.outputs[0].name)
        self._count = 0
        self._heads = node.attributes.get_int("num_heads", 0)
        self._rank = node.attributes.get_int("v_head_size", 0)
        self._scale = node.attributes.get_float("scale", 0.0)
        self.output, self.cache = self._attention()

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes, in order."""
        return list(self._tape.nodes)

    def _attention(self) -> tuple[ir.Value, ir.Value]:
        query, cache = self._operands["query"], self._operands["key_cache"]
        # There is no Shape of floats of 8 bits on the CPU: sizes are those of what they stand for.
        self._wide = self._float(cache)
        written = self._written(cache)
        rows = written if not self._is_codes(cache) else self._op("Mul", written, self._scales())
        mapped, places = self._places()
        keys = self._op("Gather", rows, self._flat(places, -1))  # [B L, C+R]
        width = self._size(keys, 1)
        heads = self._ints(self._heads)
        flat = self._op("Reshape", self._float(query), self._shape(self._ints(-1), width))
        products = self._op("MatMul", flat, self._op("Transpose", keys, perm=[1, 0]))
        scores = self._op("Mul", products, self._number(self._scale))
        by_head = self._op(
            "Reshape", scores, self._shape(self._ints(-1), heads, self._size(keys, 0))
        )
        visible = self._visible(mapped)
        hidden = self._op("Where", visible, by_head, self._number(_NEVER))
        softmax = self._op("Softmax", hidden, axis=-1)
        weights = self._op("Where", visible, softmax, self._number(0.0))
        values = self._op("Slice", keys, self._ints(0), self._ints(self._rank), self._ints(1))
        output = self._flat(self._op("MatMul", weights, values), -1, self._heads * self._rank)
        narrow = self._cast(output, query.dtype)
        blocks = self._op("Reshape", written, self._op("Shape", self._wide))
        return narrow, self._cast(blocks, cache.dtype)

    # Rows

    def _is_codes(self, cache: ir.Value) -> bool:
        return cache.dtype is not None and str(cache.dtype.numpy()) in CODES

    def _written(self, cache: ir.Value) -> ir.Value:
        """All rows ``[blocks * block size, C+R]`` with the new ones in their slots."""
        rows, slots = self._float(self._operands["key"]), self._int(self._operands["slot_mapping"])
        if self._is_codes(cache):
            rows = self._coded(rows, cache)
        width = self._size(rows, 1)
        before = self._op("Reshape", self._wide, self._shape(self._ints(-1), width))
        kept = self._op("Not", self._op("Less", slots, self._ints(0)))
        into = self._op("Compress", slots, kept, axis=0)
        new = self._op("Compress", rows, kept, axis=0)
        return self._op("ScatterND", before, self._column(into), new)

    def _coded(self, rows: ir.Value, cache: ir.Value) -> ir.Value:
        """The codes of rows, as floats: what is no number of the type is rounded to one."""
        assert cache.dtype is not None
        scales, zero, one = self._scales(), self._number(0.0), self._number(1.0)
        none = self._op("Equal", scales, zero)
        inverse = self._op("Div", one, self._op("Where", none, one, scales))
        steps = self._op("Mul", rows, self._op("Where", none, zero, inverse))
        least, most = _RANGES[str(cache.dtype.numpy())]
        if cache.dtype == ir.DataType.INT8:
            steps = self._op("Round", steps)
        clipped = self._op("Clip", steps, self._number(least), self._number(most))
        return self._float(self._cast(clipped, cache.dtype))

    def _scales(self) -> ir.Value:
        return self._op("Reshape", self._operands["k_scale"], self._ints(1, -1))

    def _places(self) -> tuple[ir.Value, ir.Value]:
        """For each row of each sequence ``[B, L]``: whether there is one, and where."""
        table, size = self._int(self._operands["block_table"]), self._size(self._wide, 1)
        rows = self._range(self._op("Mul", self._size(table, 1), size))
        blocks = self._op("Gather", table, self._op("Div", rows, size), axis=1)
        there = self._op("Not", self._op("Less", blocks, self._ints(0)))
        mapped = self._op("And", there, self._op("Less", blocks, self._size(self._wide, 0)))
        inside = self._op("Mod", rows, size)
        places = self._op("Add", self._op("Mul", blocks, size), inside)
        return mapped, self._op("Where", mapped, places, self._ints(0))

    # Who sees what

    def _visible(self, mapped: ir.Value) -> ir.Value:
        """Whether a token sees a row: ``[T, 1, B L]``."""
        ends = self._int(self._operands["cumulative_sequence_length"])
        past = self._int(self._operands["past_seqlens"])
        tokens = self._range(self._size(self._operands["query"], 0))
        behind = self._op("Slice", ends, self._ints(1), self._ints(1 << 40), self._ints(0))
        later = self._op("Not", self._op("Less", self._column(tokens), behind))
        sequence = self._op("ReduceSum", self._int(later), self._ints(1), keepdims=0)
        inside = self._op("Sub", tokens, self._op("Gather", ends, sequence))
        last = self._op("Add", self._op("Gather", past, sequence), inside)
        sequences = self._range(self._size(past, 0))
        own = self._op("Equal", self._planes(sequence), self._column(sequences))
        rows = self._range(self._size(mapped, 1))
        so_far = self._op("Not", self._op("Less", self._planes(last), rows))
        seen = self._op("And", self._op("And", own, so_far), mapped)
        return self._op("Reshape", seen, self._shape(self._ints(0, 1, -1)))

    # Words

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        self._count += 1
        name = f"{self._prefix}/stand_in/{self._count}"
        output = ir.Value(name=name)
        return self._tape.op(op_type, inputs, attributes, name=name, output=output)

    def _constant(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
        self._count += 1
        name = f"{self._prefix}/stand_in/{self._count}"
        given = {"value": ir.tensor(array)}
        return self._tape.op("Constant", [], given, name=name, output=ir.Value(name=name))

    def _ints(self, *numbers: int) -> ir.Value:
        return self._constant(np.asarray(numbers, np.int64))

    def _number(self, number: float) -> ir.Value:
        return self._constant(np.asarray(number, np.float32))

    def _cast(self, value: ir.Value, kind: ir.DataType | None) -> ir.Value:
        target = ir.DataType.FLOAT if kind is None else kind
        made = self._op("Cast", value, to=int(target))
        made.dtype = target
        return made

    def _float(self, value: ir.Value) -> ir.Value:
        return self._cast(value, ir.DataType.FLOAT)

    def _int(self, value: ir.Value) -> ir.Value:
        return self._cast(value, ir.DataType.INT64)

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        return self._op("Gather", self._op("Shape", value), self._ints(axis))

    def _shape(self, *sizes: ir.Value) -> ir.Value:
        return sizes[0] if len(sizes) == 1 else self._op("Concat", *sizes, axis=0)

    def _flat(self, value: ir.Value, *shape: int) -> ir.Value:
        return self._op("Reshape", value, self._ints(*shape))

    def _column(self, value: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", value, self._ints(1))

    def _planes(self, value: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", value, self._ints(1, 2))

    def _range(self, count: ir.Value) -> ir.Value:
        end = self._op("Squeeze", count, self._ints(0))
        zero, one = (self._constant(np.asarray(number, np.int64)) for number in (0, 1))
        return self._op("Range", zero, end, one)
