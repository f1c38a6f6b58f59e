"""Following an element of a mask back through what makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import sympy

from mla_opt.graphs import sizes
from mla_opt.graphs.interface.dims import Port
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.integers import Columns, Entries, Ramp
from mla_opt.graphs.onnx.packing.masks.elements import (
    Element,
    Place,
    UnreadMaskError,
    of_array,
    plain,
)
from mla_opt.graphs.onnx.packing.masks.order import KEY, NEW, PAST, QUERY, Case
from mla_opt.graphs.onnx.packing.masks.rules import RULES
from mla_opt.graphs.sizes import Expression
from mla_opt.sites.layout import SCORES, Layout, Part, Role

Lengths = Mapping[str, Expression | None]
"""How long the axes of scores are, by role."""


@dataclass(slots=True)
class MaskReader:
    """Reads elements of masks in one ``case``: the key not after the query, or after it."""

    graph: OnnxGraph
    case: Case
    renamed: Mapping[Expression, Expression] = field(default_factory=dict)
    known: dict[tuple[ir.Value, Place], Element] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: OnnxGraph, case: Case) -> MaskReader:
        """A reader of the model's masks; all sizes are those of one sequence."""
        return cls(graph, case, _counted(graph))

    def of_scores(self, value: ir.Value, layout: Layout | None, lengths: Lengths) -> Element:
        """What a mask over scores of such ``lengths`` has for the query and the key.

        Raises:
            UnreadMaskError: that is not the same for all calls, or cannot be told.
        """
        rank = self.graph.rank(value)
        if layout is None:
            roles: Sequence[str] = SCORES[len(SCORES) - (rank or 0) :]
        else:
            roles = [_role_of(axis) for axis in layout]
        shape = self.shape(value) or (None,) * len(roles)
        place = tuple(_place(role, size, lengths) for role, size in zip(roles, shape))
        return self.at(value, place)

    def length(self, value: ir.Value, layout: Layout, role: Role) -> Expression | None:
        """How long the axis of a role is; ``None`` where that cannot be told."""
        shape = self.shape(value)
        axes = [at for at, axis in enumerate(layout) if _role_of(axis) == role]
        if not axes:  # an axis of size one has no parts
            return 1
        return shape[axes[0]] if shape is not None and len(axes) == 1 else None

    def at(self, value: ir.Value, place: Place) -> Element:
        """The element of a value at a place."""
        key = (value, place)
        if key not in self.known:
            self.known[key] = self._read(value, place)
        return self.known[key]

    def _read(self, value: ir.Value, place: Place) -> Element:
        content = self._integer(value, place)
        if content is not None:
            return content
        node = value.producer()
        if node is None:
            return self._given(value, place)
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise UnreadMaskError(f"it is made by {self.graph.label(node)}")
        return rule(self, node, place)

    def _integer(self, value: ir.Value, place: Place) -> Element | None:
        """What is known of the content of integers, whatever computes them."""
        content = self.graph.integers(value)
        if isinstance(content, Ramp):
            if not any(content.steps):
                return self.named(content.start)
            if place is not None and len(place) == len(content.steps) and None not in place:
                steps = zip(content.steps, place)
                return self.named(content.start + sum(step * at for step, at in steps))
        if isinstance(content, Entries):
            return self._entry(content, place)
        if isinstance(content, Columns) and place is not None and isinstance(place[-1], int):
            ramp = content.ramps[place[-1]]
            if None not in place:
                return self.named(
                    ramp.start + sum(step * at for step, at in zip(ramp.steps, place[:-1]))
                )
        return None

    def _entry(self, content: Entries, place: Place) -> Element | None:
        found = content.array
        if found.size == 1:
            return plain(self.named(found.reshape(-1)[0]))
        first = found.reshape(-1)[0] if found.size else None
        if first is not None and all(each == first for each in found.reshape(-1)):
            return plain(self.named(first))
        if place is not None and all(isinstance(at, int) for at in place):
            return plain(self.named(found[place]))
        return None

    def _given(self, value: ir.Value, place: Place) -> Element:
        stored = self.graph.small_constant(value)
        if stored is not None:
            return of_array(stored, place, value)
        interface = self.graph.interface
        mask = interface.attention_mask
        if mask is not None and mask.name == value.name and len(mask.sizes) == 2:
            return 0.0 if mask.hides else 1.0
        for port in interface.positions:
            token = _token_at(port, place)
            if port.name == value.name and token is not None:
                return PAST + token
        raise UnreadMaskError(f"it is made of the input {value.name!r}")

    def named(self, number: Element) -> Element:
        """The same in the symbols of one sequence."""
        if isinstance(number, sympy.Expr):
            return plain(sizes.plain(sympy.expand(number.subs(self.renamed, simultaneous=True))))
        return number

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Sizes of a value, in a call with one sequence."""
        known = self.graph.sizes(value)
        return None if known is None else tuple(self.named(size) for size in known)


def _token_at(port: Port, place: Place) -> Expression | None:
    """Which of the new tokens a place of positions is; the query, where a call has one."""
    axis = port.axis_of("query_len")
    if axis is None:
        return None
    if port.sizes[axis] == 1:
        return QUERY
    return None if place is None else place[axis]


def _counted(graph: OnnxGraph) -> dict[Expression, Expression]:
    """What the symbols of the model's inputs are for one sequence by itself."""
    meaning = {"batch": 1, "query_len": NEW, "past_len": PAST, "total_len": PAST + NEW}
    found: dict[Expression, Expression] = {}
    for port in graph.interface.inputs:
        for axis in port.axes or ():
            if isinstance(axis.size, str) and axis.role in meaning:
                size = sizes.read(axis.size)
                if not isinstance(size, int) and size.is_Symbol:
                    found.setdefault(size, meaning[axis.role])
    return found


_ROLES: dict[str, Expression] = {"batch": 0, "query": QUERY, "key": KEY}


def _role_of(axis: Sequence[Part]) -> str:
    return axis[0].role if len(axis) == 1 else ""


def _place(role: str, size: Expression | None, lengths: Lengths) -> Expression | None:
    """Where an axis of a mask is looked at; ``None`` if it may be repeated there, or not."""
    if size == 1:
        return 0
    length = lengths.get(role)
    known = size is not None and length is not None and sizes.same(size, length)
    return _ROLES.get(role) if known else None
