"""Which tensors of two runs must be equal, and in which of their elements.

Outputs are compared in the query rows that are no padding, states in the token rows that are none.
A cache whose layout changed is compared where both sides are the same latent rows::

    original   keys [B, 1, T, C]  values [B, 1, T, R]   ──Concat(-1)──┐
                                                                      ├── [B, T, C + R]
    optimized  packed [B, 1, T, C + R], or M rows of which T are used ┘

and is left to the outputs that follow from it where the original caches expanded keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mla_opt.graphs.interface.feeds import Bools, numpy_dtype
from mla_opt.graphs.interface.interface import ModelInterface, State
from mla_opt.operator.quantized_rows import dequantize, is_codes, quantize
from mla_opt.verification.feeds import Timeline
from mla_opt.verification.interface_map import InterfaceMap, StateMap
from mla_opt.verification.oracle import Call, Run

Array = npt.NDArray[Any]
Kind = Literal["output", "state"]

JOINS = " ‖ "
"""What stands between the names of states that are compared as one."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors that must be equal where ``valid``, which broadcasts to their shape."""

    name: str
    kind: Kind
    reference: Array
    candidate: Array
    valid: Bools


@dataclass(frozen=True, slots=True)
class Aligner:
    """Knows both interfaces and what changed between them."""

    original: ModelInterface
    optimized: ModelInterface
    changes: InterfaceMap

    def pairs(self, reference: Run, candidate: Run) -> Iterator[Pair]:
        """Yield what must be equal, call by call, as far as both runs went."""
        scenario = reference.scenario
        timeline = Timeline.of(scenario.batch, scenario.total_len, scenario.padding, seed=0)
        for before, after in zip(reference.calls, candidate.calls):
            yield from self._outputs(before, after, timeline)
            yield from self._states(before, after, timeline)

    def compared_states(self) -> tuple[frozenset[str], frozenset[str]]:
        """Outputs of the original and of the optimized model that hold states to be compared."""
        same = [change for change in self.changes.states if self._is_same_rows(change)]
        changed = {name for change in self.changes.states for name in change.original.outputs}
        kept = {state.output.name for state in self.original.states} - changed
        before = kept.union(*(change.original.outputs for change in same))
        after = kept.union(*(change.optimized.outputs for change in same))
        return frozenset(before), frozenset(after)

    def can_share_a_past(self) -> bool:
        """Whether a made-up past of the original can be written in the optimized layout."""
        return all(self._is_same_rows(change) for change in self.changes.states) and not any(
            state.kind == "buffer" for state in self.original.states
        )

    def translate(self, past: Mapping[str, Array], empty: Mapping[str, Array]) -> dict[str, Array]:
        """Write a past of the original in the optimized layout, given the empty one of that."""
        translated = {name: past.get(name, value) for name, value in empty.items()}
        for change in self.changes.states:
            axes = [_state_of(self.original, n).growth_axis for n in change.original.inputs]
            parts = [_rows(past[n], a) for n, a in zip(change.original.inputs, axes)]
            if change.layout == "paged":  # whoever packs them knows the type of the blocks
                joined = np.concatenate(parts, axis=-1)
                translated[change.optimized.inputs[0]] = joined[:, None]
                continue
            kind = empty[change.optimized.inputs[0]].dtype
            for name, part in zip(change.optimized.inputs, self._split(parts, change, kind)):
                state = _state_of(self.optimized, name)
                translated[name] = _place(part, empty[name], state)
        return translated

    def _split(
        self, parts: Sequence[Array], change: StateMap, kind: np.dtype[Any]
    ) -> Sequence[Array]:
        """Cut joined rows to the widths that the optimized inputs have, or quantize them."""
        rows = np.concatenate(parts, axis=-1)
        if is_codes(kind):
            return quantize(rows, change.kv_lora_rank, kind)
        if len(change.optimized.inputs) == 1:
            return [rows]
        return [rows[..., : change.first_width], rows[..., change.first_width :]]

    def _outputs(self, before: Call, after: Call, timeline: Timeline) -> Iterator[Pair]:
        rows = timeline.valid[:, before.past_len : before.past_len + before.query_len]
        for name, value in before.outputs.items():
            if name in after.outputs:
                valid = _query_valid(value.shape, rows, self._query_axis(name))
                yield Pair(name, "output", value, after.outputs[name], valid)

    def _query_axis(self, name: str) -> int | None:
        """The axis of an output that bears the symbol of the new tokens, if they have one."""
        tokens = self.original.tokens
        axis = tokens.axis_of("query_len") if tokens is not None else None
        symbol = tokens.sizes[axis] if tokens is not None and axis is not None else None
        port = next((p for p in self.original.outputs if p.name == name), None)
        if port is None or not isinstance(symbol, str) or symbol not in port.sizes:
            return None
        return port.sizes.index(symbol)

    def _states(self, before: Call, after: Call, timeline: Timeline) -> Iterator[Pair]:
        if not before.states or not after.states:
            return
        rows = timeline.valid[:, : before.past_len + before.query_len]
        mapped = {name for change in self.changes.states for name in change.original.outputs}
        for state in self.original.states:
            name = state.output.name
            if name not in mapped and name in before.states:
                value = before.states[name]
                valid = _token_valid(value.shape, state, rows)
                yield Pair(name, "state", value, after.states[name], valid)
        for change in self.changes.states:
            if self._is_same_rows(change):
                yield self._changed(change, before.states, after.states, rows)

    def _changed(
        self, change: StateMap, before: Mapping[str, Array], after: Mapping[str, Array], rows: Bools
    ) -> Pair:
        length = rows.shape[1]
        joined = [
            _joined([_rows(values[n], _axis_of(model, n))[:, :length] for n in names], change)
            for model, values, names in (
                (self.original, before, change.original.outputs),
                (self.optimized, after, change.optimized.outputs),
            )
        ]
        return Pair(joined_name(change), "state", joined[0], joined[1], rows[:, :, None])

    def _is_same_rows(self, change: StateMap) -> bool:
        """Whether the original caches latent rows, too: its widths add up to one, C + R.

        What keeps its shape, as a buffer that the model itself writes, is not compared row by row.
        """
        states = [_state_of(self.original, n) for n in change.original.inputs]
        states += [_state_of(self.optimized, n) for n in change.optimized.inputs]
        if any(state.growth_axis is None for state in states):
            return False
        if change.layout == "paged" and is_codes(numpy_dtype(states[-1].input)):
            return False  # their scales are known to no one here
        ports = [_state_of(self.original, n).input for n in change.original.inputs]
        widths = [port.sizes[-1] if port.sizes else None for port in ports]
        one_head = all(
            port.rank == 3 or (port.rank == 4 and 1 in port.sizes[1:3]) for port in ports
        )
        wanted = [change.kv_lora_rank, change.qk_rope_head_dim]
        return not change.reordered and one_head and widths in (wanted, [sum(wanted)], wanted[:1])


def _joined(parts: Sequence[Array], change: StateMap) -> Array:
    """Rows ``[B, T, C + R]`` of the tensors that hold them; codes as what they stand for."""
    if is_codes(parts[0].dtype):
        return dequantize(parts[0], parts[1], change.qk_rope_head_dim)
    return np.concatenate(parts, axis=-1)


def joined_name(change: StateMap) -> str:
    """What a report calls a cache whose tensors are compared as one."""
    return JOINS.join(change.original.outputs)


def _state_of(model: ModelInterface, name: str) -> State:
    return next(s for s in model.states if name in (s.input.name, s.output.name))


def _axis_of(model: ModelInterface, output: str) -> int | None:
    return _state_of(model, output).growth_axis


def _rows(value: Array, axis: int | None) -> Array:
    """Bring ``[B, 1, T, D]`` and its permutations to ``[B, T, D]``."""
    if axis is not None:
        value = np.moveaxis(value, axis, 1)
    return value.reshape(value.shape[0], value.shape[1], -1)


def _place(rows: Array, empty: Array, state: State) -> Array:
    """Put rows ``[B, P, D]`` where an empty state has room for them."""
    axis = state.growth_axis
    if axis is None:
        raise ValueError(f"state {state.input.name!r} has no axis that counts tokens")
    lengths = list(empty.shape)
    if state.kind != "buffer":
        lengths[axis] = rows.shape[1]
    filled = np.zeros(lengths, empty.dtype)
    view = np.moveaxis(filled, axis, 1)
    view[:, : rows.shape[1]] = rows.reshape(rows.shape[0], rows.shape[1], *view.shape[2:])
    return filled


def _query_valid(shape: tuple[int, ...], rows: Bools, axis: int | None) -> Bools:
    """Spread ``rows``, ``[B, S]``, over an output that has a query axis; else all is valid.

    ``axis`` is the one that the file names; without a name, the first of length S counts.
    """
    batch, length = rows.shape
    fits = [i for i, n in enumerate(shape) if i and n == length] if shape[:1] == (batch,) else []
    if axis in fits:
        fits = [axis]
    return _spread(rows, shape, fits[0]) if fits else np.ones((1,) * len(shape), np.bool_)


def _token_valid(shape: tuple[int, ...], state: State, rows: Bools) -> Bools:
    """Spread ``rows``, ``[B, T]``, over a state; a recurrent one is valid throughout."""
    axis = state.growth_axis
    if axis is None or len(shape) <= axis or shape[0] != rows.shape[0]:
        return np.ones((1,) * len(shape), np.bool_)
    padded = np.zeros((rows.shape[0], shape[axis]), np.bool_)
    length = min(rows.shape[1], shape[axis])
    padded[:, :length] = rows[:, :length]
    return _spread(padded, shape, axis)


def _spread(rows: Bools, shape: tuple[int, ...], axis: int) -> Bools:
    target = [1] * len(shape)
    target[0], target[axis] = rows.shape
    return rows.reshape(target)
