"""Telling a model's stateless inputs apart: token ids, embeddings, positions, attention mask.

Structure first: token ids index a weight matrix, positions reach a sine or a rotary operator, and
so do the places (:mod:`mla_opt.graphs.interface.places`) that rows of a buffer are written to. The
mask has no structure of its own that exporters agree on, so names and shapes decide; which way
round it is, its graph does (:mod:`mla_opt.graphs.interface.mask_sense`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from mla_opt.graphs.interface.dims import AxisRole, Port, Size
from mla_opt.graphs.interface.mask_sense import hides_where_true
from mla_opt.graphs.interface.places import is_place, is_start

#: Between token ids and the look-up.
INDEX_LAYOUT = frozenset({"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten"})
#: Between positions and the sine: layout, and the product with the inverse frequencies.
ANGLE_OPS = INDEX_LAYOUT | {"Transpose", "Expand", "Mul", "MatMul", "Einsum", "Concat"}
ANGLE_ENDS = frozenset({"Cos", "Sin", "RotaryEmbedding"})
#: Between a stored embedding table and the look-up.
STORED_LAYOUT = frozenset({"Identity", "Cast", "Transpose", "DequantizeLinear"})

EMBEDDING_NAMES = ("embed", "hidden")
POSITION_NAMES = ("position",)
TOKEN_NAMES = ("input_ids", "token", "ids")
MASK_NAMES = ("mask",)

MAX_STEPS = 10


@dataclass(frozen=True, slots=True)
class StatelessInputs:
    """Every input that is no state, by what it is; ``starts`` are places of first new tokens."""

    token_ids: Port | None
    vocabulary: int | None
    embeddings: Port | None
    attention_mask: Port | None
    positions: tuple[Port, ...]
    starts: tuple[Port, ...]
    others: tuple[Port, ...]


def sort_inputs(values: Iterable[ir.Value]) -> StatelessInputs:
    """Tell ``values``, the inputs that are no states, apart. Roles are not set yet."""
    rest = list(values)
    starts = [v for v in rest if _is_integer(v) and is_start(v)]
    _drop(rest, *starts)
    ids, vocabulary = _token_ids(rest)
    _drop(rest, ids)
    embeddings = None if ids else _embeddings(rest)
    _drop(rest, embeddings)
    positions = [v for v in rest if _is_position(v)]
    _drop(rest, *positions)
    tokens = embeddings if ids is None else ids
    mask = _attention_mask(rest, _new_tokens(tokens))
    _drop(rest, mask)
    return StatelessInputs(
        token_ids=_port(ids),
        vocabulary=vocabulary,
        embeddings=_port(embeddings),
        attention_mask=_port(mask),
        positions=tuple(Port.of(v) for v in positions),
        starts=tuple(Port.of(v) for v in starts),
        others=tuple(_described(v) for v in rest),
    )


def _drop(rest: list[ir.Value], *taken: ir.Value | None) -> None:
    rest[:] = [v for v in rest if not any(v is t for t in taken)]


def _port(value: ir.Value | None) -> Port | None:
    return None if value is None else _described(value)


def _described(value: ir.Value) -> Port:
    """A port, and which way round it is if it is a mask."""
    return replace(Port.of(value), hides=hides_where_true(value))


def _named(value: ir.Value, words: tuple[str, ...]) -> bool:
    return any(word in (value.name or "").lower() for word in words)


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _token_ids(values: list[ir.Value]) -> tuple[ir.Value | None, int | None]:
    """Return the ids and the vocabulary size, the length of the table they index."""
    tables = {v: t for v in values if _is_integer(v) and (t := _indexed_rows(v)) is not None}
    by_name = [v for v in values if _is_integer(v) and _named(v, TOKEN_NAMES)]
    by_name = [v for v in by_name if not _named(v, POSITION_NAMES + MASK_NAMES)]
    likely = [v for v in tables if not _named(v, POSITION_NAMES + MASK_NAMES) and not is_place(v)]
    for value in [*(v for v in by_name if v in tables), *likely, *by_name]:
        return value, tables.get(value)
    return None, None


def _indexed_rows(value: ir.Value) -> int | None:
    """Rows of the stored matrix that ``value`` indexes; ``None`` where it indexes none."""
    for node, index in _uses_through(value, INDEX_LAYOUT):
        if node.op_type in ("Gather", "GatherBlockQuantized") and index == 1:
            rows = _stored_rows(node.inputs[0])
            if rows is not None:
                return rows
    return None


def _stored_rows(table: ir.Value | None) -> int | None:
    """Rows of a stored matrix, through what dequantizes or transposes it."""
    transposed = False
    while table is not None and not table.is_initializer():
        node = table.producer()
        if node is None or node.op_type not in STORED_LAYOUT:
            return None
        transposed ^= node.op_type == "Transpose"
        table = node.inputs[0]
    if table is None or table.shape is None or table.shape.rank() != 2:
        return None
    rows = table.shape[1 if transposed else 0]
    return rows if isinstance(rows, int) else None


def _is_position(value: ir.Value) -> bool:
    if not _is_integer(value):
        return False
    if _named(value, POSITION_NAMES) or is_place(value):
        return True
    if _named(value, MASK_NAMES):
        return False
    return any(n.op_type in ANGLE_ENDS for n, _ in _uses_through(value, ANGLE_OPS))


def _attention_mask(values: list[ir.Value], query: object) -> ir.Value | None:
    """Return the input named so, else a 4-D one, else an integer or boolean matrix.

    Of several one that can tell the padding of sequences comes first: the last to be one for all
    sequences is a matrix whose rows are the new tokens.
    """
    named = [v for v in values if _named(v, MASK_NAMES) and _rank(v) in (2, 3, 4, None)]
    named.sort(key=lambda v: _rank(v) == 2 and v.shape is not None and v.shape[0] == query)
    square = [v for v in values if _rank(v) == 4 and _all_open(v, (-1, -2))]
    matrix = [v for v in values if _rank(v) == 2 and not _is_float(v)]
    return next(iter(named + square + matrix), None)


def _new_tokens(tokens: ir.Value | None) -> object:
    """How tokens ``[B, S]`` declare S; ``None`` where they do not, or it is a number."""
    if tokens is None or tokens.shape is None or tokens.shape.rank() < 2:
        return None
    size = tokens.shape[1]
    return None if isinstance(size, int) or size.value is None else size


def _all_open(value: ir.Value, axes: tuple[int, ...]) -> bool:
    return value.shape is not None and not any(isinstance(value.shape[a], int) for a in axes)


def _embeddings(values: list[ir.Value]) -> ir.Value | None:
    candidates = [v for v in values if _is_float(v) and _rank(v) == 3]
    named = [v for v in candidates if _named(v, EMBEDDING_NAMES)]
    plain = [v for v in candidates if not _named(v, MASK_NAMES + POSITION_NAMES)]
    return next(iter(named + plain), None)


def _uses_through(value: ir.Value, through: frozenset[str]) -> Iterator[tuple[ir.Node, int]]:
    """Yield the uses of ``value`` and of whatever ``through`` operators make of it."""
    frontier, seen = [value], {value}
    for _ in range(MAX_STEPS):
        following: list[ir.Value] = []
        for known in frontier:
            for node, index in known.uses():
                yield node, index
                if node.op_type in through and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    following.append(node.outputs[0])
        frontier = following


def token_roles(port: Port) -> dict[int, AxisRole]:
    """Roles of ids ``[B, S]`` or ``[S]`` and of embeddings ``[B, S, E]``."""
    if port.dtype is not None and port.dtype.is_floating_point():
        return {0: "batch", 1: "query_len"}
    return {0: "query_len"} if port.rank == 1 else {0: "batch", 1: "query_len"}


def start_roles(port: Port) -> dict[int, AxisRole]:
    """Roles of a place for all sequences, or of one for each."""
    return {0: "batch"} if port.rank == 1 and port.sizes[0] != 1 else {}


def position_roles(port: Port, is_batch: Callable[[Size], bool]) -> dict[int, AxisRole]:
    """Roles of positions ``[S]``, ``[B, S]``, ``[1, S]`` for all rows, or ``[3, B, S]``."""
    rank = port.rank or 0
    roles: dict[int, AxisRole] = {rank - 1: "query_len"}
    if rank >= 2:
        roles[rank - 2] = "batch" if is_batch(port.sizes[rank - 2]) else "broadcast"
    return roles


def mask_roles(port: Port, query: Size | None) -> dict[int, AxisRole]:
    """Roles of a mask ``[B, T]``, ``[S, T]``, ``[B, S, T]`` or ``[B, 1, S, T]``.

    ``query`` is how tokens declare S. A matrix whose rows have that symbol is one for all
    sequences; where S is more than 1, a mask with one query row serves all queries.
    """
    rank, one_query = port.rank or 0, query == 1
    if rank == 2 and isinstance(query, str) and port.sizes[0] == query:
        return {0: "query_len", 1: "total_len"}
    roles: dict[int, AxisRole] = {rank - 1: "total_len", 0: "batch"}
    if rank >= 3:
        for_all = port.sizes[rank - 2] == 1 and not one_query
        roles[rank - 2] = "broadcast" if for_all else "query_len"
    if rank == 4 and not isinstance(port.sizes[1], int):
        roles[1] = "broadcast"
    return roles
