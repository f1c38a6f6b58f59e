"""Pairing the states of a model: which input of this call was which output of the last one.

Structure first. A state that grows is joined to its new rows and handed out again::

    past ──[layout]── Concat(past, new) ──[layout]── present

or goes in and out of one fused attention operator. What structure does not show (recurrent and
convolution states, rewritten caches) is paired by name, then by order and shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from mla_opt.graphs.interface.dims import AxisRole, Port, Size, is_expression
from mla_opt.operator import contract
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPES

#: ``growing`` gains S rows a call, ``recurrent`` keeps its shape, ``buffer`` is a cache of fixed
#: capacity that is written in place.
StateKind = Literal["growing", "recurrent", "buffer"]

#: Operators that only rename or reorder what they are given.
LAYOUT = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze"})

#: Fused attention operators: input index of a state to the index of its output.
FUSED: dict[tuple[str, str], dict[int, int]] = {
    **{(contract.DOMAIN, name): {2: 1, 6: 2} for name in contract.OP_TYPES},
    **{(contract.DOMAIN, name): {3: 1, 7: 2} for name in MULTI_HEAD_OP_TYPES},
    ("", "Attention"): {4: 1, 5: 2},
    ("com.microsoft", "GroupQueryAttention"): {3: 1, 4: 2},
    ("com.microsoft", "MultiHeadAttention"): {6: 1, 7: 2},
    ("", "TensorScatter"): {0: 0},
}
#: Input that turns a fused operator's cache into a buffer of fixed capacity.
BUFFER_INPUT: dict[tuple[str, str], int] = {
    **{(contract.DOMAIN, name): 3 for name in contract.OP_TYPES},
    **{(contract.DOMAIN, name): 4 for name in MULTI_HEAD_OP_TYPES},
    ("", "TensorScatter"): 1,
}

#: Words that tell a state's input from its output and nothing else.
DIRECTION = frozenset(
    {
        "past",
        "present",
        "input",
        "inputs",
        "output",
        "outputs",
        "in",
        "out",
        "new",
        "old",
        "next",
        "prev",
        "previous",
        "updated",
    }
)
#: Words without which two names that agree are not taken for one state.
STATE_WORDS = frozenset(
    {
        "past",
        "present",
        "cache",
        "caches",
        "state",
        "states",
        "conv",
        "recurrent",
        "ssm",
        "kv",
        "memory",
    }
)
NOT_STATES = ("hidden", "mask", "position", "input_ids", "embed")

MAX_STEPS = 8


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that one call hands to the next.

    ``growth_axis`` is the dimension that counts tokens; ``None`` for a recurrent state.
    """

    input: Port
    output: Port
    kind: StateKind
    growth_axis: int | None


@dataclass(frozen=True, slots=True)
class KnownStates:
    """States that someone else vouches for: input name to output name, and which are buffers."""

    pairs: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()


def pair_states(
    graph: ir.Graph, inputs: Iterable[ir.Value], known: KnownStates
) -> tuple[State, ...]:
    """Pair every state among ``inputs`` with its output, in input order; ``known`` ones first."""
    inputs = tuple(inputs)
    pairs = _StatePairs(graph)
    for value in inputs:
        pairs.by_vouching(value, known)
    for value in inputs:
        pairs.by_structure(value)
    for value in inputs:
        pairs.by_name(value)
    pairs.by_order(inputs)
    return tuple(pairs.found[value] for value in inputs if value in pairs.found)


class _StatePairs:
    """Pairs found so far; an output belongs to one input only."""

    def __init__(self, graph: ir.Graph) -> None:
        self.found: dict[ir.Value, State] = {}
        self._outputs = {value: Port.of(value) for value in graph.outputs}
        self._owners = _subgraph_owners(graph)

    def by_vouching(self, value: ir.Value, known: KnownStates) -> None:
        """Take the output that ``known`` names."""
        name = value.name or ""
        for output in self._free():
            if output.name == known.pairs.get(name):
                kind = "buffer" if name in known.buffers else self._kind_towards(value, output)
                self._accept(value, output, kind)

    def _kind_towards(self, value: ir.Value, output: ir.Value) -> StateKind | None:
        """What ``value`` is, where it is seen to be joined with new rows to ``output``."""
        for node, index in _consumers(value, MAX_STEPS, self._owners):
            joined = _joined(node, index)
            if joined is not None and output in _aliases(joined, MAX_STEPS, self._owners):
                return _kind_at(node)
        return None

    def by_structure(self, value: ir.Value) -> None:
        """Follow ``value`` through a ``Concat`` or a fused operator to a graph output."""
        if value in self.found:
            return
        for node, index in _consumers(value, MAX_STEPS, self._owners):
            joined = _joined(node, index)
            output = joined and self._reached_output(joined)
            if output and self._accept(value, output, _kind_at(node)):
                return

    def by_name(self, value: ir.Value) -> None:
        """Take the output whose name differs from the input's by a direction word only."""
        key = state_key(value.name or "")
        if value in self.found or key is None:
            return
        matches = [v for v in self._free() if state_key(v.name or "") == key]
        if len(matches) == 1:
            self._accept(value, matches[0], None)

    def by_order(self, inputs: tuple[ir.Value, ...]) -> None:
        """Pair what is left of one shape, first with first, if both sides are equally many."""
        rest = [v for v in inputs if v not in self.found and state_key(v.name or "")]
        for shape in dict.fromkeys(_signature(v) for v in rest):
            left = [v for v in rest if _signature(v) == shape]
            right = [v for v in self._free() if _signature(v) == shape]
            if shape is not None and len(left) == len(right):
                for value, output in zip(left, right):
                    self._accept(value, output, None)

    def _free(self) -> list[ir.Value]:
        taken = {state.output.name for state in self.found.values()}
        return [v for v in self._outputs if v.name not in taken]

    def _reached_output(self, value: ir.Value) -> ir.Value | None:
        free = set(self._free())
        reached = (v for v in _aliases(value, MAX_STEPS, self._owners) if v in free)
        return next(reached, None)

    def _accept(self, value: ir.Value, output: ir.Value, kind: StateKind | None) -> bool:
        source, target = Port.of(value), self._outputs[output]
        if source.dtype != target.dtype or _ranks_differ(source, target):
            return False
        joined = kind == "growing"
        axis = _buffer_axis(source) if kind == "buffer" else _growth_axis(source, target, joined)
        if kind == "growing" and axis is None:
            return False
        kind = kind or ("recurrent" if axis is None else "growing")
        self.found[value] = State(source, target, kind, axis)
        return True


def state_key(name: str) -> tuple[str, ...] | None:
    """Reduce ``past.0.keys`` and ``present.0.keys`` to the same words.

    ``None`` where nothing in the name speaks of a state.
    """
    lowered = name.lower()
    if any(word in lowered for word in NOT_STATES):
        return None
    words = [w for w in re.split(r"[^a-z0-9]+", re.sub("key_values", "kv", lowered)) if w]
    if not STATE_WORDS.intersection(words):
        return None
    return tuple(w for w in words if w not in DIRECTION and w != "kv")


def _subgraph_owners(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """Map every subgraph (a branch of an ``If``, say) to the node that holds it."""
    owners: dict[ir.Graph, ir.Node] = {}
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                owners[attribute.as_graph()] = node
    return owners


def _aliases(value: ir.Value, steps: int, owners: dict[ir.Graph, ir.Node]) -> Iterator[ir.Value]:
    """Yield ``value`` and everything that is it up to layout, nearest first."""
    frontier = [value]
    for _ in range(steps):
        yield from frontier
        frontier = [v for known in frontier for v in _next_aliases(known, owners)]
        if not frontier:
            return


def _next_aliases(value: ir.Value, owners: dict[ir.Graph, ir.Node]) -> Iterator[ir.Value]:
    for node, index in value.uses():
        if node.op_type in LAYOUT and index == 0:
            yield node.outputs[0]
    owner = owners.get(value.graph) if isinstance(value.graph, ir.Graph) else None
    if owner is not None and value.graph is not None and value.is_graph_output():
        yield owner.outputs[list(value.graph.outputs).index(value)]


def _consumers(
    value: ir.Value, steps: int, owners: dict[ir.Graph, ir.Node]
) -> Iterator[tuple[ir.Node, int]]:
    for alias in _aliases(value, steps, owners):
        yield from alias.uses()


def _joined(node: ir.Node, index: int) -> ir.Value | None:
    """Return the output of ``node`` that carries its input ``index`` on to the next call."""
    if node.op_type == "Concat" and node.domain == "":
        return node.outputs[0]
    output = FUSED.get((node.domain, node.op_type), {}).get(index)
    if output is None or output >= len(node.outputs):
        return None
    return node.outputs[output]


def _kind_at(node: ir.Node) -> StateKind:
    index = BUFFER_INPUT.get((node.domain, node.op_type))
    given = index is not None and index < len(node.inputs) and node.inputs[index] is not None
    return "buffer" if given else "growing"


def _ranks_differ(source: Port, target: Port) -> bool:
    return None not in (source.rank, target.rank) and source.rank != target.rank


def _growth_axis(source: Port, target: Port, joined: bool) -> int | None:
    """Dimension in which a state is longer on its way out.

    A different number or expression tells. Where the output's dimensions are all unnamed, a
    symbol that speaks of the past, else the usual place, the last but one. The first dimension
    counts sequences unless the state is known to have been ``joined`` to new rows.
    """
    after = target.sizes or (None,) * len(source.sizes)
    pairs = list(enumerate(zip(source.sizes, after)))
    certain = [i for i, (a, b) in pairs if _grows(a, b)]
    if len(certain) == 1:
        return certain[0]
    differing = [i for i, (a, b) in pairs if not isinstance(a, int) and a != b]
    open_axes = [i for i in differing if i] or (differing if joined else [])
    named = [i for i in open_axes if "past" in str(source.sizes[i])]
    usual = [i for i in open_axes if i == len(pairs) - 2]
    return next(iter(named + usual + open_axes), None)


def _grows(before: Size, after: Size) -> bool:
    if isinstance(before, int):
        return isinstance(after, int) and after > before
    if before is None or not is_expression(after):
        return False
    return re.search(rf"(?<!\w){re.escape(before)}(?!\w)", str(after)) is not None


def _buffer_axis(source: Port) -> int | None:
    return None if source.rank is None or source.rank < 2 else source.rank - 2


def _signature(value: ir.Value) -> tuple[object, ...] | None:
    """Dtype and the sizes that are numbers: what two ends of a recurrent state share."""
    port = Port.of(value)
    if port.axes is None:
        return None
    return (port.dtype, *(s if isinstance(s, int) else None for s in port.sizes))


def state_roles(state: State, batch: Size) -> dict[int, AxisRole]:
    """Roles of a state's input dimensions, given the symbol that counts sequences."""
    roles: dict[int, AxisRole] = {}
    if state.growth_axis is not None:
        roles[state.growth_axis] = "capacity" if state.kind == "buffer" else "past_len"
    named = [i for i, s in enumerate(state.input.sizes) if s == batch and isinstance(s, str)]
    for index in [*named, 0]:
        if index not in roles:
            roles[index] = "batch"
            break
    return roles
