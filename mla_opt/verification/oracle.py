"""Runs a model over a scenario, feeding it its own states, and keeps what it said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.graphs.interface.interface import KnownStates, ModelInterface, State
from mla_opt.sites import Ends
from mla_opt.verification.feeds import Timeline, random_state
from mla_opt.verification.interface_map import METADATA_KEY, InterfaceMap
from mla_opt.verification.running import RunError, Running
from mla_opt.verification.scenarios import Scenario

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Driver:
    """How to drive one model: its interface and what becomes of its states.

    Attributes:
        interface: what it is fed, with ``past_len_input`` among the others.
        past_len_input: the input that says how many rows of the buffers are past.
        capacity: rows of the buffers.
    """

    interface: ModelInterface
    past_len_input: str | None = None
    capacity: int | None = None

    @property
    def has_buffers(self) -> bool:
        """Whether states are buffers that are written in place."""
        return any(state.kind == "buffer" for state in self.interface.states)

    def initial_states(self, scenario: Scenario) -> dict[str, Array]:
        """States before the first call: no rows, zeros in buffers and recurrent states."""
        first = scenario.calls[0]
        shapes = self.interface.bind(
            scenario.batch, first, scenario.initial_past, self._rows(scenario)
        )
        return {
            state.input.name: np.zeros(shapes[state.input.name], numpy_dtype(state.input))
            for state in self.interface.states
        }

    def made_up_states(self, scenario: Scenario, seed: int) -> dict[str, Array]:
        """Random growing states for a scenario that starts in the middle.

        A model that counts its tokens itself, in states that are one whole number, keeps the rows
        in buffers: these are random then, too.
        """
        states = self.initial_states(scenario)
        counters = [s.input.name for s in self.interface.states if _counts_tokens(s)]
        for state in self.interface.states:
            name = state.input.name
            if name in counters:
                states[name] = np.full_like(states[name], scenario.initial_past)
            elif state.kind == "growing" or counters:
                states[name] = random_state(state.input, states[name].shape, seed)
        return states

    def feeds(
        self, timeline: Timeline, start: int, stop: int, scenario: Scenario
    ) -> dict[str, Array]:
        """Everything but the states for one call."""
        feeds = timeline.call(self.interface, start, stop, self._rows(scenario))
        if self.past_len_input is not None:
            feeds[self.past_len_input] = np.full(timeline.batch, start, np.int32)
        return feeds

    def _rows(self, scenario: Scenario) -> int:
        return self.capacity or scenario.total_len


def _counts_tokens(state: State) -> bool:
    """Whether a state is one whole number: what else would a model count from call to call?"""
    integer = state.input.dtype in (ir.DataType.INT32, ir.DataType.INT64)
    return state.kind == "recurrent" and state.input.rank == 0 and integer


@dataclass(frozen=True, slots=True)
class Call:
    """One call and what came of it.

    Attributes:
        query_len: S.
        past_len: P.
        outputs: everything that is no state, by name.
        states: the states after it that are compared, by output name; only after the last call of
            a scenario, as earlier rows are still in them.
    """

    query_len: int
    past_len: int
    outputs: Mapping[str, Array]
    states: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario on one model; ``error`` says why it ended early, if it did."""

    scenario: Scenario
    calls: tuple[Call, ...]
    error: str | None = None


States = Callable[[Scenario], dict[str, Array]]


def run_scenario(
    session: Running,
    driver: Driver,
    scenario: Scenario,
    seed: int,
    compared: Collection[str],
    states: States | None = None,
) -> Run:
    """Run ``scenario`` call by call.

    Args:
        session: The model.
        driver: Knows its inputs.
        scenario: Which calls.
        seed: What all inputs follow from.
        compared: Outputs that hold states to be compared; others, which may be large, are not kept.
        states: Gives the past of the first call; an empty one if ``None``.
    """
    timeline = Timeline.of(scenario.batch, scenario.total_len, scenario.padding, seed)
    calls: list[Call] = []
    try:
        past = (states or driver.initial_states)(scenario)
        for start, stop in scenario.spans():
            feeds = driver.feeds(timeline, start, stop, scenario) | past
            produced = session.run(feeds)
            past = {s.input.name: produced[s.output.name] for s in driver.interface.states}
            last = stop == scenario.total_len
            calls.append(_call(driver, produced, start, stop, compared if last else ()))
    except (RunError, InputError) as error:
        return Run(scenario, tuple(calls), str(error))
    return Run(scenario, tuple(calls))


def _call(
    driver: Driver, produced: dict[str, Array], start: int, stop: int, kept: Collection[str]
) -> Call:
    names = driver.interface.state_outputs
    outputs = {name: value for name, value in produced.items() if name not in names}
    states = {name: produced[name] for name in sorted(names.intersection(kept))}
    return Call(stop - start, start, outputs, states)


def original_driver(model: ir.Model, changes: InterfaceMap) -> Driver:
    """Drive the original: the map, where it names a state, outranks what the graph shows."""
    known = KnownStates(_pairs([state.original for state in changes.states]))
    return _driver(ModelInterface.of(model, known), known)


def optimized_driver(model: ir.Model, changes: InterfaceMap) -> Driver:
    """Drive the optimized model as the map says."""
    static = [n for s in changes.states if s.layout == "static" for n in s.optimized.inputs]
    pairs = _pairs([state.optimized for state in changes.states])
    known = KnownStates(pairs, frozenset(static))
    interface = ModelInterface.of(model, known)
    return _driver(interface, known, changes.past_len_input, changes.capacity)


def _pairs(ends: list[Ends]) -> dict[str, str]:
    return {i: o for end in ends for i, o in zip(end.inputs, end.outputs)}


def _driver(
    interface: ModelInterface,
    known: KnownStates,
    past_len_input: str | None = None,
    capacity: int | None = None,
) -> Driver:
    states = {state.input.name: state for state in interface.states}
    for source, target in known.pairs.items():
        if source not in states or states[source].output.name != target:
            raise InputError(
                f"{METADATA_KEY} says that output {target!r} continues input {source!r}, but the"
                " model has no such pair of one rank and type"
            )
    return Driver(interface, past_len_input, capacity)
