"""Which operator makes which element of what it reads."""

from __future__ import annotations

from mla_opt.graphs.onnx.packing.masks import decisions, moves
from mla_opt.graphs.onnx.packing.masks.elements import Rule
from mla_opt.graphs.onnx.packing.masks.order import Case
from mla_opt.graphs.sizes import Expression

_at_least = Case.is_at_least


def _is_less(case: Case, left: Expression, right: Expression) -> bool | None:
    return decisions.opposite_truth(case.is_at_least(left, right))


RULES: dict[str, Rule] = {
    "Identity": moves.same,
    "Cast": decisions.cast,
    "Not": decisions.negated,
    "And": decisions.both,
    "Or": decisions.either,
    "GreaterOrEqual": decisions.compared(_at_least),
    "LessOrEqual": decisions.compared(lambda case, left, right: _at_least(case, right, left)),
    "Less": decisions.compared(_is_less),
    "Greater": decisions.compared(lambda case, left, right: _is_less(case, right, left)),
    "Equal": decisions.compared(Case.is_equal),
    "Where": decisions.chosen,
    "Add": decisions.arithmetic(lambda left, right: left + right),
    "Sub": decisions.arithmetic(lambda left, right: left - right),
    "Mul": decisions.arithmetic(lambda left, right: left * right),
    "Neg": decisions.opposite,
    "Unsqueeze": moves.reshaped,
    "Squeeze": moves.reshaped,
    "Reshape": moves.reshaped,
    "Flatten": moves.reshaped,
    "Expand": moves.expanded,
    "Transpose": moves.transposed,
    "Slice": moves.sliced,
    "Gather": moves.gathered,
    "GatherND": moves.looked_up,
    "ConstantOfShape": moves.filled,
    "Constant": moves.constant,
}
