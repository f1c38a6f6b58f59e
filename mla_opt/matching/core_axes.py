"""What is known of the axes of one attention, and a place of a walk that carries them.

All axes are told in the variables of the scores (:mod:`mla_opt.matching.axes`): what lies between a
product and the softmax may group and permute sequences, heads and tokens, and must keep each what
it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Axis, Placement, UnknownShapeError, Variables
from mla_opt.matching.axis_rules import Step, broadcast_axes
from mla_opt.sites import AttentionCore

KEYS = "t"
"""The variable of the tokens that a softmax goes over."""


def is_named(axis: Axis, name: str) -> bool:
    """Whether an axis is all of one variable, or, being of size one, may be."""
    return not axis or (len(axis) == 1 and axis[0].name == name)


def is_keys(axis: Axis) -> bool:
    """Whether an axis is that of the tokens attended to."""
    return bool(axis) and is_named(axis, KEYS)


@dataclass(frozen=True, slots=True)
class CoreAxes:
    """The axes of what a core reads and makes, in the variables of its scores.

    ``keys`` is the variable of the tokens attended to. ``apart`` says why the axes are not known;
    it is empty if they are.
    """

    variables: Variables
    query: Placement = ()
    key: Placement = ()
    value: Placement = ()
    output: Placement = ()
    bias: tuple[Placement, ...] = ()
    keys: str = KEYS
    apart: str = ""
    at: Node | None = None
    code: str = ApartError.code


@dataclass(frozen=True, slots=True)
class ReadCore:
    """An attention, and what is known of its axes."""

    core: AttentionCore
    axes: CoreAxes


@dataclass(frozen=True, slots=True)
class At:
    """A place of a walk: a value and its axes; with the first thing that they were lost at."""

    value: Value
    axes: Placement | None
    apart: str = ""
    lost_at: Node | None = None
    code: str = ApartError.code

    def lost(self, value: Value, why: str | ApartError, node: Node) -> At:
        """Go on without knowing the axes."""
        if self.apart:
            return replace(self, value=value, axes=None)
        code = why.code if isinstance(why, ApartError) else UnknownShapeError.code
        return At(value, None, str(why), node, code)


def through(graph: Graph, variables: Variables, at: At, node: Node, operand: Value) -> At:
    """One operand of an elementwise operation, with its axes."""
    if at.axes is None:
        return replace(at, value=operand)
    try:
        axes = broadcast_axes(Step(graph, variables, node, at.value, at.axes), operand)
    except ApartError as error:
        return at.lost(operand, error, node)
    return replace(at, value=operand, axes=axes)
