"""Whether a mask is true where a token may be looked at, as most are, or where it may not.

PyTorch's ``key_padding_mask`` is of the second kind. What a graph does with the mask tells, as far
as the operators on the way are known: where it is true, scores are replaced by a very negative
number, or have one added to them. Else the name tells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

#: The mask, in another place or type.
LAYOUT = frozenset(
    {"Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand"}
    | {"Slice", "Transpose", "Gather", "Concat", "Tile", "And", "Or", "Add", "Mul"}
)
#: Operators of attention, which take masks that are true where a token may be looked at.
ATTENTION = frozenset(
    {"Attention", "MultiHeadAttention", "LatentAttention", "MultiHeadLatentAttention"}
)
#: Operators of one number, and the attributes that say which.
CONSTANTS = {"Constant": ("value", "value_float"), "ConstantOfShape": ("value",)}
#: Addends of scores below this hide a token.
VERY_NEGATIVE = -1000.0
HIDING_NAMES = ("padding_mask", "pad_mask")
MAX_VALUES = 1000


def hides_where_true(mask: ir.Value) -> bool | None:
    """Whether a mask of numbers or booleans is true at the tokens that must not be looked at.

    ``None`` where neither graph nor name tells.
    """
    told = _told_by_graph(mask)
    if told is not None:
        return told
    name = (mask.name or "").lower()
    named = mask.dtype == ir.DataType.BOOL and any(word in name for word in HIDING_NAMES)
    return True if named else None


def _told_by_graph(mask: ir.Value) -> bool | None:
    """What the first use of known meaning says; `turned`: true where the mask is not."""
    frontier: list[tuple[ir.Value, bool]] = [(mask, False)]
    seen = {mask}
    while frontier and len(seen) < MAX_VALUES:
        value, turned = frontier.pop(0)
        for node, place in value.uses():
            hides = _hides(node, place)
            if hides is not None:
                return hides != turned
            for made, turns in _made(node, place):
                if made not in seen:
                    seen.add(made)
                    frontier.append((made, turned != turns))
    return None


def _hides(node: ir.Node, place: int) -> bool | None:
    """Whether scores are hidden where an operand is true; ``None`` where this is not the place."""
    if node.op_type in ATTENTION:
        return False
    if node.op_type == "Where" and place == 0:
        chosen, other = (_number(_operand(node, branch)) for branch in (1, 2))
        if chosen is not None and chosen < VERY_NEGATIVE:
            return True
        return False if other is not None and other < VERY_NEGATIVE else None
    if node.op_type == "Mul":
        factor = _number(_operand(node, 1 - place))
        return True if factor is not None and factor < VERY_NEGATIVE else None
    return None


def _made(node: ir.Node, place: int) -> Iterator[tuple[ir.Value, bool]]:
    """What is still a mask behind a node, and whether it is turned over there."""
    if not node.outputs:
        return
    made = node.outputs[0]
    if node.op_type == "Not":
        yield made, True
    elif node.op_type in LAYOUT:
        yield made, False
    elif node.op_type == "Sub" and place == 1:
        yield made, True
    elif node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        bound = _number(_operand(node, 1 - place))
        if bound is not None and bound in (0, 0.5, 1):
            kept = {"Equal": bound == 1}.get(
                node.op_type, node.op_type.startswith("Gr") == (place == 0)
            )
            yield made, not kept
    elif node.op_type == "Where" and place == 0:
        branches = tuple(_number(_operand(node, branch)) for branch in (1, 2))
        if branches in ((1.0, 0.0), (0.0, 1.0)):
            yield made, branches == (0.0, 1.0)


def _operand(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if 0 <= place < len(node.inputs) else None


def _number(value: ir.Value | None) -> float | None:
    """The one number that a stored or constant tensor holds."""
    for _ in range(10):
        if value is None:
            return None
        tensor, node = value.const_value, value.producer()
        if tensor is None and node is not None:
            tensor = _constant(node)
        if tensor is not None:
            return _same(tensor)
        if node is None or node.op_type not in LAYOUT - {"And", "Or", "Add", "Mul", "Concat"}:
            return None
        value = _operand(node, 0)
    return None


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """What a node repeats, or makes of nothing."""
    names = CONSTANTS.get(node.op_type, ())
    value = next((node.attributes[name] for name in names if name in node.attributes), None)
    if value is None or value.is_ref():
        return None
    if value.type == ir.AttributeType.FLOAT:
        return ir.tensor(value.as_float())
    return value.as_tensor() if value.type == ir.AttributeType.TENSOR else None


def _same(tensor: ir.TensorProtocol) -> float | None:
    if tensor.dtype == ir.DataType.STRING or not 0 < tensor.size <= MAX_VALUES:
        return None
    try:
        numbers = np.asarray(tensor.numpy()).astype(np.float64).reshape(-1)
    except (NotImplementedError, RuntimeError, TypeError):  # PyTorch's tensors without content
        return None
    return float(numbers[0]) if np.all(numbers == numbers[0]) else None
