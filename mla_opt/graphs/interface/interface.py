"""A model's interface, read off its graph: what each input is and what each dimension counts.

The symbols are those of :mod:`mla_opt.geometry`: B sequences, S new tokens in this call, P tokens
in the past, T = P + S keys in sight. :meth:`ModelInterface.bind` turns values for them into shapes,
:meth:`ModelInterface.limits` says which of them the file fixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.interface.dims import (
    UNKNOWN_SIZE,
    Axis,
    AxisRole,
    Port,
    Size,
    evaluate,
    is_expression,
)
from mla_opt.graphs.interface.states import KnownStates, State, pair_states, state_roles
from mla_opt.graphs.interface.tokens import (
    StatelessInputs,
    mask_roles,
    position_roles,
    sort_inputs,
    start_roles,
    token_roles,
)
from mla_opt.graphs.interface.widths import with_widths

__all__ = [
    "UNKNOWN_SIZE",
    "Axis",
    "AxisRole",
    "KnownStates",
    "Limits",
    "ModelInterface",
    "Port",
    "State",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that a file fixes; ``None`` where it takes any."""

    batch: int | None = None
    query_len: int | None = None
    past_len: int | None = None
    total_len: int | None = None

    def nearest(
        self, batch: int, query_len: int, past_len: int, *, stateful: bool
    ) -> tuple[int, int, int]:
        """Return B, S and P as near to these as the file allows; P is 0 where it keeps no state."""
        query_len = self.query_len or query_len
        if self.total_len is not None:
            past_len = self.total_len - query_len
        if self.past_len is not None:
            past_len = self.past_len
        return self.batch or batch, query_len, past_len if stateful else 0


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """What a model is fed and what it hands back.

    ``starts`` are inputs that hold the place of the first new token, of all sequences or of each.
    ``vocabulary`` is the number of rows of the table that the ids index, if it was found.
    ``outputs`` holds all outputs, those of the states included. A width of a state that the file
    leaves open is the number that it has to be (`with_widths`).
    """

    token_ids: Port | None
    vocabulary: int | None
    embeddings: Port | None
    attention_mask: Port | None
    positions: tuple[Port, ...]
    states: tuple[State, ...]
    others: tuple[Port, ...]
    outputs: tuple[Port, ...]
    starts: tuple[Port, ...] = ()

    @classmethod
    def of(cls, model: ir.Model, known: KnownStates | None = None) -> ModelInterface:
        """Read the interface of ``model``. Raises nothing: what is not recognised is an *other*.

        ``known`` names states whose pairing is recorded elsewhere.
        """
        graph = model.graph
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        states = pair_states(graph, inputs, known or KnownStates())
        paired = {state.input.name for state in states}
        stateless = sort_inputs(v for v in inputs if v.name not in paired)
        interface = _with_roles(stateless, states, tuple(Port.of(v) for v in graph.outputs))
        return replace(interface, states=with_widths(graph, interface.states, interface._counted()))

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Every input: tokens, mask, positions, states, starts, others."""
        single = (self.token_ids, self.embeddings, self.attention_mask)
        stateless = (*(p for p in single if p is not None), *self.positions)
        return (*stateless, *(s.input for s in self.states), *self.starts, *self.others)

    @property
    def tokens(self) -> Port | None:
        """The input that carries the new tokens, as ids or as embeddings."""
        return self.token_ids or self.embeddings

    @property
    def state_outputs(self) -> frozenset[str]:
        """Names of the outputs that the next call is fed."""
        return frozenset(state.output.name for state in self.states)

    def limits(self) -> Limits:
        """Return which of B, S, P and T a static dimension fixes; P is 0 without states."""
        fixed: dict[AxisRole, int] = {} if self.states else {"past_len": 0}
        for _, _, axis in self._dimensions():
            if isinstance(axis.size, int):
                fixed.setdefault(axis.role, axis.size)
        roles: tuple[AxisRole, ...] = ("batch", "query_len", "past_len", "total_len")
        return Limits(*(fixed.get(role) for role in roles))

    def bind(
        self, batch: int, query_len: int, past_len: int, capacity: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of every input for B, S and P.

        ``capacity`` is the number of rows of a cache buffer whose size the file leaves open; T if
        it is not given. A dimension that follows from none of them is `UNKNOWN_SIZE`. Raises
        `InputError`, naming input and dimension, where the file says otherwise.
        """
        if past_len and not self.states:
            raise InputError(f"the model keeps no state, so it takes no past_len of {past_len}")
        counts: dict[AxisRole, int] = {
            "batch": batch,
            "query_len": query_len,
            "past_len": past_len,
            "total_len": past_len + query_len,
            "broadcast": 1,
            "capacity": capacity or past_len + query_len,
        }
        symbols = self._symbols(counts)
        return {port.name: _bound_shape(port, counts, symbols) for port in self.inputs}

    def _dimensions(self) -> Iterator[tuple[Port, int, Axis]]:
        for port in self.inputs:
            for index, axis in enumerate(port.axes or ()):
                yield port, index, axis

    def _symbols(self, counts: dict[AxisRole, int]) -> dict[str, int]:
        """Values of the single symbols; the first use of one decides, ids before masks."""
        symbols: dict[str, int] = {}
        for _, _, axis in self._dimensions():
            if isinstance(axis.size, str) and not is_expression(axis.size) and axis.role in counts:
                symbols.setdefault(axis.size, counts[axis.role])
        return symbols

    def _counted(self) -> frozenset[Size]:
        """The symbols of dimensions whose meaning is known."""
        return frozenset(axis.size for _, _, axis in self._dimensions() if axis.role != "free")


def _with_roles(
    stateless: StatelessInputs, states: tuple[State, ...], outputs: tuple[Port, ...]
) -> ModelInterface:
    """Set the roles of all dimensions: the tokens' own symbols first, then what depends on them."""
    tokens = stateless.token_ids or stateless.embeddings
    roles = token_roles(tokens) if tokens is not None else {}
    named = dict(zip(roles.values(), tokens.sizes if tokens is not None else ()))
    batch, query = named.get("batch"), named.get("query_len")
    mask = stateless.attention_mask
    return ModelInterface(
        token_ids=stateless.token_ids and stateless.token_ids.with_roles(roles),
        vocabulary=stateless.vocabulary,
        embeddings=stateless.embeddings and stateless.embeddings.with_roles(roles),
        attention_mask=mask and mask.with_roles(mask_roles(mask, query)),
        positions=tuple(_position(port, batch) for port in stateless.positions),
        states=tuple(_state(state, batch) for state in states),
        others=tuple(_other(port, named) for port in stateless.others),
        outputs=outputs,
        starts=tuple(port.with_roles(start_roles(port)) for port in stateless.starts),
    )


def _position(port: Port, batch: Size) -> Port:
    def is_batch(size: Size) -> bool:
        return size != 1 or batch == 1

    return port.with_roles(position_roles(port, is_batch))


def _state(state: State, batch: Size) -> State:
    return replace(state, input=state.input.with_roles(state_roles(state, batch)))


def _other(port: Port, named: dict[AxisRole, Size]) -> Port:
    """An input of no known meaning still shares the symbols of the tokens."""
    roles = {s: r for r, s in named.items() if isinstance(s, str)}
    known = {i: roles[s] for i, s in enumerate(port.sizes) if isinstance(s, str) and s in roles}
    return port.with_roles(known)


def _bound_shape(
    port: Port, counts: dict[AxisRole, int], symbols: dict[str, int]
) -> tuple[int, ...]:
    if port.axes is None:
        raise InputError(
            f"input {port.name!r} has no shape in the model; re-export it with one, or run shape"
            " inference on it"
        )
    return tuple(_bound(port, i, axis, counts, symbols) for i, axis in enumerate(port.axes))


def _bound(
    port: Port, index: int, axis: Axis, counts: dict[AxisRole, int], symbols: dict[str, int]
) -> int:
    wanted = counts.get(axis.role)
    stated = evaluate(axis.size, symbols) if _decides(axis) else None
    if axis.role == "capacity" and stated is not None:
        return stated
    if wanted is None and stated is None:
        return UNKNOWN_SIZE
    if wanted is not None and stated is not None and stated != wanted:
        raise InputError(
            f"dimension {index} of input {port.name!r} is {axis.size} in the model, so it takes no"
            f" {axis.role} of {wanted}"
        )
    return stated if stated is not None else wanted or 0


def _decides(axis: Axis) -> bool:
    """Whether the stated size outranks the role: a number or an expression does, a symbol not.

    Exporters give one symbol to dimensions that differ and two to one that is the same.
    """
    return axis.role == "free" or isinstance(axis.size, int) or is_expression(axis.size)
