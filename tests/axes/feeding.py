"""What the inputs of a model mean, and random feeds of any size for them.

Written apart from the optimizer's own reading of interfaces, so that a fault there shows. An axis
is a number, a symbol, or an expression of symbols; the symbols count B sequences, S new tokens, P
past tokens and T = P + S tokens in sight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper

Array = np.ndarray[Any, Any]
Kind = Literal["ids", "hidden", "mask", "positions", "past_count", "cache", "other"]
Axis = int | str

MASKED = {"float16": -6e4, "float32": -1e9, "float64": -1e9, "bfloat16": -1e9}
"""Additive masks forbid by a finite number, so that a query that sees nothing has a mean."""

UNKNOWN_SIZE = 3
BATCH, QUERY, PAST, TOTAL = "B", "S", "P", "T"


@dataclass(frozen=True)
class Size:
    """Sizes of one call; ``kind`` says how its masks look."""

    batch: int
    query: int
    past: int
    masks: Literal["causal", "ragged", "random", "open"] = "causal"

    @property
    def total(self) -> int:
        return self.past + self.query

    def __str__(self) -> str:
        return f"B={self.batch} S={self.query} P={self.past} {self.masks} masks"


@dataclass(frozen=True)
class Input:
    """One input: what it is for, and its axes as the file has them."""

    name: str
    kind: Kind
    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model, what its symbols count, and how many words it knows.

    ``coarse`` models store 16-bit numbers: of a query that sees nothing they make what rounding
    makes of it, so that every query is to see itself.
    """

    ports: tuple[Input, ...]
    symbols: Mapping[str, str]
    words: int
    outputs: tuple[str, ...]
    capacity: int | None = None
    coarse: bool = False

    def fits(self, size: Size) -> bool:
        """Whether the file takes this size."""
        if self.capacity is not None and size.total > self.capacity:
            return False
        fixed = {(BATCH, size.batch), (QUERY, size.query), (PAST, size.past), (TOTAL, size.total)}
        return all(port.kind == "other" or self._fixed(port, fixed) for port in self.ports)

    def _fixed(self, port: Input, sizes: set[tuple[str, int]]) -> bool:
        counts = dict(sizes)
        roles = _roles(port)
        return all(
            not isinstance(axis, int) or role is None or axis in (1, counts[role])
            for axis, role in zip(port.axes, roles)
        )

    def shape(self, port: Input, size: Size) -> tuple[int, ...]:
        """The shape of one input in a call of this size."""
        counts = {BATCH: size.batch, QUERY: size.query, PAST: size.past, TOTAL: size.total}
        known = {name: counts[role] for name, role in self.symbols.items()}
        return tuple(_evaluated(axis, known) for axis in port.axes)

    def of(self, kind: Kind) -> list[Input]:
        """The inputs of one kind."""
        return [port for port in self.ports if port.kind == kind]


def _roles(port: Input) -> tuple[str | None, ...]:
    """What the axes of an input of known kind count; ``None`` where a number is a width."""
    rank = len(port.axes)
    if port.kind in ("ids", "hidden"):
        return (BATCH, QUERY, None)[:rank]
    if port.kind == "mask":
        return (BATCH, None, QUERY, TOTAL) if rank == 4 else (None,) * rank
    return (None,) * rank


def understand(model: onnx.ModelProto, kinds: Mapping[str, Kind] | None = None) -> Inputs:
    """Read the inputs of a model; ``kinds`` overrules what their names and shapes suggest."""
    stored = {each.name for each in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    outputs = tuple(value.name for value in model.graph.output)
    ports = [_port(value, kinds or {}) for value in given]
    if not any(port.kind in ("ids", "hidden") for port in ports) and ports:
        ports[0] = Input(ports[0].name, "hidden", ports[0].dtype, ports[0].axes)
    caches = [port for port in ports if port.kind == "cache"]
    symbols = _symbols(ports)
    fixed = [rows for port in caches if (rows := _capacity(port, symbols))]
    coarse = bool(stored_floats(model) & {"float16", "bfloat16"})
    words = _words(model, ports)
    return Inputs(tuple(ports), symbols, words, outputs, min(fixed, default=None), coarse)


def _port(value: onnx.ValueInfoProto, kinds: Mapping[str, Kind]) -> Input:
    kind = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    axes = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{place}"
        for place, dim in enumerate(kind.shape.dim)
    )
    guessed = kinds.get(value.name) or _kind(value.name.lower(), dtype, axes)
    return Input(value.name, guessed, dtype, axes)


def _kind(name: str, dtype: np.dtype[Any], axes: tuple[Axis, ...]) -> Kind:
    whole = dtype.kind in "iu"
    if "mask" in name or "bias" in name or dtype.kind == "b":
        return "mask"
    if whole and ("past" in name or "start" in name or "len" in name):
        return "past_count"
    if whole and ("pos" in name or len(axes) == 1):
        return "positions"
    if whole:
        return "ids"
    if any(word in name for word in ("past", "present", "cache", "state", "buffer")):
        return "cache"
    return "hidden" if len(axes) == 3 else "other"


def _capacity(port: Input, symbols: Mapping[str, str]) -> int | None:
    """Rows of a buffer, its longest axis; ``None`` for a cache that grows."""
    if any(isinstance(axis, str) and symbols.get(axis) != BATCH for axis in port.axes):
        return None
    return max(axis for axis in port.axes if isinstance(axis, int))


def _symbols(ports: Iterable[Input]) -> dict[str, str]:
    """What each symbol counts: the tokens' own first, then the caches', then the masks'."""
    ports = list(ports)
    found: dict[str, str] = {}
    order: tuple[Kind, ...] = ("ids", "hidden", "cache", "positions", "past_count", "mask", "other")
    for kind in order:
        for port in ports:
            if port.kind == kind:
                for place, axis in enumerate(port.axes):
                    if isinstance(axis, str) and axis.isidentifier() and axis not in found:
                        found[axis] = _count(port, place, found)
    return found


def _count(port: Input, place: int, found: Mapping[str, str]) -> str:
    batch_is_elsewhere = any(found.get(str(axis)) == BATCH for axis in port.axes)
    if port.kind == "past_count" or (place == 0 and len(port.axes) > 1 and not batch_is_elsewhere):
        return BATCH
    if port.kind == "cache":
        return PAST
    if port.kind == "mask":
        return TOTAL if place == len(port.axes) - 1 else QUERY
    return QUERY


def _evaluated(axis: Axis, known: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    if axis in known:
        return known[axis]
    if not re.fullmatch(r"[\w\s+*()/-]+", axis):
        return UNKNOWN_SIZE
    return int(eval(axis, {"__builtins__": {}}, dict(known)))


def _words(model: onnx.ModelProto, ports: Iterable[Input]) -> int:
    """Rows of the table that the ids are looked up in."""
    ids = {port.name for port in ports if port.kind == "ids"}
    stored = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and set(node.input) & ids:
            ids.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in ids and node.input[0] in stored:
            return int(stored[node.input[0]].dims[0])
    return 8


@dataclass
class Feeds:
    """Random content for the inputs of one call, the same whenever it is drawn again."""

    inputs: Inputs
    size: Size
    seed: int = 0
    states: Mapping[str, Array] = field(default_factory=dict)

    def draw(self) -> dict[str, Array]:
        """All inputs, by name; the caches are ``states`` where given."""
        rng = np.random.default_rng([self.seed, self.size.batch, self.size.query, self.size.past])
        drawn = {port.name: self._content(port, rng) for port in self.inputs.ports}
        return drawn | dict(self.states)

    def _content(self, port: Input, rng: np.random.Generator) -> Array:
        shape = self.inputs.shape(port, self.size)
        if port.kind == "ids":
            return rng.integers(0, self.inputs.words, shape).astype(port.dtype)
        if port.kind == "positions":
            places = np.arange(self.size.past, self.size.total)
            whole = np.broadcast_to(places, (*shape[:-1], self.size.query))
            return np.ascontiguousarray(whole.astype(port.dtype))
        if port.kind == "past_count":
            return np.full(shape, self.size.past, port.dtype)
        if port.kind == "mask":
            return mask(port, shape, self.size, rng, coarse=self.inputs.coarse)
        return rng.standard_normal(shape).astype(port.dtype)


def mask(
    port: Input,
    shape: tuple[int, ...],
    size: Size,
    rng: np.random.Generator,
    *,
    coarse: bool = False,
) -> Array:
    """A mask in the meaning of its type: true or 1 attends, an additive one is 0 where it does."""
    if len(shape) < 3:
        seen = _keys(shape, size, rng, size.past if coarse else shape[-1] // 2)
    else:
        seen = np.broadcast_to(_pairs(shape, size, rng, coarse), shape)
    if "padding" in port.name.lower():
        seen = ~seen
    if port.dtype.kind in "biu":
        return np.ascontiguousarray(seen.astype(port.dtype))
    lowest = MASKED.get(port.dtype.name, -1e9)
    free = rng.standard_normal(shape) if size.masks == "random" else 0.0
    return np.where(seen, free, lowest).astype(port.dtype)


def _keys(shape: tuple[int, ...], size: Size, rng: np.random.Generator, most: int) -> Array:
    """Which keys of each sequence exist at all; the last one always does."""
    seen = np.ones(shape, bool)
    if size.masks == "ragged":
        missing = rng.integers(0, most + 1, shape[:-1])
        seen &= np.arange(shape[-1]) >= missing[..., None]
    if size.masks == "random":
        seen &= (rng.random(shape) < 0.8) | (np.arange(shape[-1]) >= shape[-1] - size.query)
    seen[..., -1] = True
    return seen


def _pairs(shape: tuple[int, ...], size: Size, rng: np.random.Generator, coarse: bool) -> Array:
    """Which query sees which key; queries in front of a ragged sequence may see none."""
    query, total = shape[-2:]
    keys, own = np.arange(total), np.arange(query)[:, None] + (total - query)
    seen = np.ones(shape, bool)
    if size.masks in ("causal", "ragged"):
        seen &= keys <= own
    if size.masks == "ragged":
        exists = _keys((shape[0], total), size, rng, total // 2)
        seen &= exists.reshape(shape[0], *(1,) * (len(shape) - 2), total)
    if size.masks == "random":
        seen &= (rng.random(shape) < 0.7) | (keys == total - query)
    return seen | (keys == own) if coarse else seen


def stored_floats(model: onnx.ModelProto) -> set[str]:
    """The float types that a model stores, by NumPy's names."""
    kinds = {each.data_type for each in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.input}
    names = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name for kind in kinds if kind}
    return names & {"float16", "float32", "float64", "bfloat16"}


__all__ = ["Array", "Feeds", "Input", "Inputs", "Kind", "Size", "mask", "understand"]
