"""Which values of two models are the same, whatever the weights and the inputs are.

Two values are the same if one operator makes them of the same values. Nodes that return an operand
as it is count as that operand. Where other nodes make a value of one name in both models, that both
are the same is *assumed*, to be shown by running what makes them. No two assumptions may rest on
each other: what is computed of a value in either model must not be computed before it in the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.graphs import sizes
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.sizes import Expression
from mla_opt.verification.onnx.layers.content import content, node_key, read_by

Shape = tuple[Expression, ...]
Kind = int
"""Values with the same number are the same."""


@dataclass(eq=False)
class Side:
    """One of the models, and what is known of its values."""

    model: ir.Model
    interface: ModelInterface

    @cached_property
    def graph(self) -> OnnxGraph:
        """Shapes and types."""
        return OnnxGraph(self.model)

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        """All values of the main graph, by name."""
        graph = self.model.graph
        made = (output for node in graph for output in node.outputs)
        every = (*graph.inputs, *graph.initializers.values(), *made)
        return {value.name: value for value in every if value.name}

    @cached_property
    def data(self) -> set[ir.Value]:
        """What depends on the content of tokens, caches and the like; masks and sizes do not."""
        interface = self.interface
        tokens = () if interface.tokens is None else (interface.tokens,)
        states = (state.input for state in interface.states)
        floats = (p for p in interface.others if p.dtype is None or p.dtype.is_floating_point())
        names = {port.name for port in (*tokens, *states, *floats)}
        found = {value for value in self.model.graph.inputs if value.name in names}
        for node in self.model.graph:
            if node.op_type not in ("Shape", "Size") and not found.isdisjoint(read_by(node)):
                found.update(node.outputs)
        return found

    def shape(self, value: ir.Value) -> Shape | None:
        """Sizes as expressions of the model's symbols."""
        return self.graph.sizes(value)

    def plain(self, value: ir.Value) -> ir.Value:
        """What a value is without nodes that do nothing."""
        while (node := value.producer()) is not None:
            before = self.graph.unchanged(node)
            if before is None:
                return value
            value = before
        return value


@dataclass(eq=False)
class Correspondence:
    """Both models, and the kinds of their values; ``assumed`` are names of values to be shown."""

    before: Side
    after: Side
    kinds: dict[tuple[Side, ir.Value], Kind] = field(default_factory=dict)
    assumed: set[str] = field(default_factory=set)
    _known: dict[Hashable, Kind] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Side, Side]:
        """The original, then the optimized model."""
        return self.before, self.after

    @classmethod
    def of(cls, before: Side, after: Side) -> Correspondence:
        """Compare all values that outputs depend on.

        Raises:
            InputError: the models compute values of the same names in another order.
        """
        found = cls(before, after)
        for side in found.sides:
            for output in side.model.graph.outputs:
                found._decide(side, output)
        return found

    def kind(self, side: Side, value: ir.Value) -> Kind | None:
        """The kind of a value that was reached; ``None`` for others."""
        return self.kinds.get((side, value))

    @cached_property
    def common(self) -> set[Kind]:
        """Kinds of values that both models have."""
        own = [{kind for (each, _), kind in self.kinds.items() if each is s} for s in self.sides]
        return own[0] & own[1]

    def shape(self, side: Side, value: ir.Value) -> Shape | None:
        """Sizes of a value, or of what is the same in the original, where more is known of that."""
        original = self._originals.get(self.kinds.get((side, value), -1))
        own = side.shape(value)
        return own if original is None or _is_known(own) else self.before.shape(original)

    def element_type(self, side: Side, value: ir.Value) -> ir.DataType | None:
        """The type of a value, or of what is the same in the original."""
        original = self._originals.get(self.kinds.get((side, value), -1))
        known = side.graph.element_type(value)
        return known if known or original is None else self.before.graph.element_type(original)

    @cached_property
    def _originals(self) -> dict[Kind, ir.Value]:
        return {kind: value for (side, value), kind in self.kinds.items() if side is self.before}

    def _decide(self, side: Side, value: ir.Value) -> None:
        """Decide on a value, what it is computed from first, in either model."""
        pending, path = [(side, value)], {(side, value)}
        while pending:
            current = pending[-1]
            needed = self._needed(*current)
            missing = next((each for each in needed if each not in self.kinds), None)
            if missing is None or current in self.kinds:
                path.discard(pending.pop())
                if current not in self.kinds:
                    self._settle(*current)
            elif missing in path:
                raise InputError(
                    f"the models compute {missing[1].name!r} and {current[1].name!r} in another"
                    " order, so they cannot be compared layer by layer"
                )
            else:
                pending.append(missing)
                path.add(missing)

    def _needed(self, side: Side, value: ir.Value) -> Iterator[tuple[Side, ir.Value]]:
        """What a value's kind follows from: its operands, and those of its namesake."""
        for each, own in self._namesakes(side, value):
            plain = each.plain(own)
            if plain is not own:
                yield each, plain
            elif (node := own.producer()) is not None:
                yield from ((each, operand) for operand in read_by(node))

    def _namesakes(self, side: Side, value: ir.Value) -> list[tuple[Side, ir.Value]]:
        other = self.after if side is self.before else self.before
        namesake = other.values.get(value.name or "")
        return [(side, value)] if namesake is None else [(side, value), (other, namesake)]

    def _settle(self, side: Side, value: ir.Value) -> None:
        both = self._namesakes(side, value)
        kinds = [self._structure(*each) for each in both]
        if len(both) == 2 and kinds[0] != kinds[1] and self._may_be_same(*both):
            self.assumed.add(value.name or "")
            kinds = [self._number(("assumed", value.name))] * 2
        self.kinds.update(zip(both, kinds))

    def _may_be_same(self, one: tuple[Side, ir.Value], other: tuple[Side, ir.Value]) -> bool:
        """Whether computed values have one type and one shape, or are outputs of the models."""
        if any(value.producer() is None for _, value in (one, other)):
            return False
        if all(value.is_graph_output() for _, value in (one, other)):
            return True
        shapes = [side.shape(value) for side, value in (one, other)]
        types = [side.graph.element_type(value) for side, value in (one, other)]
        return _agree(*shapes) and (None in types or types[0] == types[1])

    def _structure(self, side: Side, value: ir.Value) -> Kind:
        """The kind of a value by what makes it."""
        plain = side.plain(value)
        if plain is not value:
            return self.kinds[side, plain]
        node = value.producer()
        if node is None:
            return self._number(self._given(side, value))
        operands = [None if each is None else self.kinds[side, each] for each in node.inputs]
        captured = [self.kinds[side, each] for each in read_by(node)]
        does = node_key(side.model, node)
        return self._number((does, tuple(operands), tuple(captured), value.index()))

    def _given(self, side: Side, value: ir.Value) -> Hashable:
        tensor = value.const_value
        if tensor is not None:  # an input with a default is run with that
            return ("stored", tensor.dtype, tuple(tensor.shape.numpy()), content(tensor))
        shape = None if value.shape is None else str(value.shape)
        return ("input", value.name, value.dtype, shape)

    def _number(self, key: Hashable) -> Kind:
        return self._known.setdefault(key, len(self._known))


def _is_known(shape: Shape | None) -> bool:
    return shape is not None and not any(map(sizes.is_open, shape))


def _agree(one: Shape | None, other: Shape | None) -> bool:
    """Whether two shapes may be the same, as far as they are known."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        left == right or sizes.is_open(left) or sizes.is_open(right)
        for left, right in zip(one, other)
    )
