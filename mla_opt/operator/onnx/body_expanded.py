"""The part of a function body that attends to keys and values of every head.

    for each block of queries:   scores = query @ keys + bias -> softmax -> @ values
    the blocks one behind the other; zeros where a query may see nothing

There are always as many blocks, whose size depends on the number of queries: a body is the same for
all lengths, and a Loop would be in the way of whoever plans memory. With fewer than LEAST_QUERIES
there are some in the first block alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from mla_opt.operator.onnx.body_tape import BodyTape
from mla_opt.operator.onnx.function_body import share_kept

BLOCKS = 4
LEAST_QUERIES = 128


@dataclass(frozen=True, slots=True)
class Heads:
    """What queries attend to.

    Attributes:
        keys: transposed, ``[B, H, N+R, T]``.
        values: ``[B, H, T, V]``.
        bias: to add to the scores, broadcasts to ``[B, H, S, T]``; None: nothing.
        sink: ``[H]`` or None.
    """

    keys: ir.Value
    values: ir.Value
    bias: ir.Value | None
    sink: ir.Value | None


def attend_to_heads(tape: BodyTape, query: ir.Value, heads: Heads, *, by_blocks: bool) -> ir.Value:
    """Record the attention of the scaled query ``[B, H, S, N+R]``, ``[B, H, S, V]``.

    A query that may see nothing gives numbers of no meaning.
    """
    if not by_blocks:
        return _attend(tape, query, heads, heads.bias)
    bias = None if heads.bias is None else _for_each_query(tape, heads.bias, query)
    outputs = [
        _attend(
            tape,
            tape.op("Slice", query, start, end, tape.ints(2)),
            heads,
            None if bias is None else tape.op("Slice", bias, start, end, tape.ints(-2)),
        )
        for start, end in _blocks(tape, query)
    ]
    return tape.op("Concat", *outputs, axis=2)


def _attend(tape: BodyTape, query: ir.Value, heads: Heads, bias: ir.Value | None) -> ir.Value:
    scores = tape.op("MatMul", query, heads.keys)
    if bias is not None:
        scores = tape.op("Add", scores, bias)
    probabilities = tape.op("Softmax", scores, axis=-1)
    output = tape.op("MatMul", probabilities, heads.values)
    if heads.sink is None:
        return output
    return tape.op("Mul", output, share_kept(tape, scores, probabilities, heads.sink))


def _for_each_query(tape: BodyTape, bias: ir.Value, query: ir.Value) -> ir.Value:
    """Return the bias with a row for each query, where it may have one for all."""
    shape = tape.op("Concat", tape.sizes(query, 2), tape.ints(1), axis=0)
    return tape.op("Expand", bias, shape)


def _blocks(tape: BodyTape, query: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield where each block starts and ends; a slice ends with the last query at most."""
    raised = tape.op("Add", tape.sizes(query, 2), tape.ints(BLOCKS - 1))
    size = tape.op("Max", tape.op("Div", raised, tape.ints(BLOCKS)), tape.ints(LEAST_QUERIES))
    ends = [tape.op("Mul", size, tape.ints(number)) for number in range(BLOCKS + 1)]
    yield from pairwise(ends)
