"""Rules of operators that compare, choose and compute, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.masks.elements import (
    Element,
    Place,
    Reader,
    Rule,
    UnreadMaskError,
    operand,
)
from mla_opt.graphs.onnx.packing.masks.order import Case
from mla_opt.graphs.onnx.shape_rules.facts import attribute
from mla_opt.graphs.sizes import Expression


def compared(decide: Callable[[Case, Expression, Expression], bool | None]) -> Rule:
    """A comparison, which has to come out the same in every call of the case."""

    def rule(reader: Reader, node: ir.Node, place: Place) -> Element:
        left, right = (operand(reader, node, place, at) for at in (0, 1))
        decided = decide(reader.case, _number(left), _number(right))
        if decided is None:
            raise UnreadMaskError(
                f"{reader.graph.label(node)} depends on more than which token comes first"
            )
        return decided

    return rule


def _number(element: Element) -> Expression:
    """An element as something to compare: whole numbers as such."""
    if isinstance(element, bool | float) and float(element).is_integer():
        return int(element)
    return element


def opposite_truth(decided: bool | None) -> bool | None:
    """What is not decided stays so."""
    return None if decided is None else not decided


def truth(element: Element) -> bool:
    """A truth, or a number as one. Raises `UnreadMaskError` where it depends on places."""
    if isinstance(element, bool | int | float):
        return bool(element)
    raise UnreadMaskError("a truth depends on places")


def both(reader: Reader, node: ir.Node, place: Place) -> Element:
    """And: what one operand denies, the other need not tell."""
    return _combined(reader, node, place, False)


def either(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Or: what one operand grants, the other need not tell."""
    return _combined(reader, node, place, True)


def _combined(reader: Reader, node: ir.Node, place: Place, decisive: bool) -> Element:
    """And, Or: what one operand decides, the other need not tell."""
    unread: UnreadMaskError | None = None
    for at in (0, 1):
        try:
            if truth(operand(reader, node, place, at)) is decisive:
                return decisive
        except UnreadMaskError as error:
            unread = error
    if unread is not None:
        raise unread
    return not decisive


def negated(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Not."""
    return not truth(operand(reader, node, place, 0))


def chosen(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Where: the operand that the condition takes."""
    return operand(reader, node, place, 1 if truth(operand(reader, node, place, 0)) else 2)


def cast(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Truths and numbers in another type; places stay whole numbers."""
    element = operand(reader, node, place, 0)
    target = ir.DataType(attribute(node, "to", ir.DataType.FLOAT))
    if not isinstance(element, bool | int | float):
        if target.is_integer():
            return element
        raise UnreadMaskError(f"{reader.graph.label(node)} makes a number of a place")
    if target == ir.DataType.BOOL:
        return bool(element)
    if not target.is_integer():
        return float(element)
    if not math.isfinite(element):
        raise UnreadMaskError(f"{reader.graph.label(node)} makes an integer of {element}")
    return int(element)


def arithmetic(combine: Callable[[Expression, Expression], Expression]) -> Rule:
    """A sum, difference or product."""

    def rule(reader: Reader, node: ir.Node, place: Place) -> Element:
        left, right = (operand(reader, node, place, at) for at in (0, 1))
        if _is_float(left) != _is_float(right) and not (_is_plain(left) and _is_plain(right)):
            raise UnreadMaskError(f"{reader.graph.label(node)} makes a number of a place")
        return combine(left, right)

    return rule


def _is_float(element: Element) -> bool:
    return isinstance(element, float)


def _is_plain(element: Element) -> bool:
    return isinstance(element, bool | int | float)


def opposite(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Neg."""
    return -operand(reader, node, place, 0)
