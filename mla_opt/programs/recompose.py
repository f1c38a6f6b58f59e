"""Put decomposed products of rank 4 together again; drop what only asserts, and empty tensors.

Before:   x [B,H,S,D] --> expand, view [B H,S,D] --+
                                                   +--> bmm --> view [B,H,S,T]
          y [B,H,D,T] --> expand, view [B H,D,T] --+
After:    x, y --> matmul [B,H,S,T]

Decomposition makes batch and heads one axis for every product and two again behind it, and takes
the guard of a softmax apart. The matcher reads attention over four axes, so both are put back; the
numbers are the same.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram, symbolic_shape
from mla_opt.graphs.torch.order import drop_dead

aten = torch.ops.aten

_ASSERTIONS = {aten._assert_tensor_metadata.default}
_VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.clone.default,
}


def recompose(program: LiftedProgram) -> None:
    """Rewrite every such product of the graph, and remove assertions about element types."""
    for node in list(program.graph.nodes):
        if node.target in _ASSERTIONS:
            program.graph.erase_node(node)
    for node in list(program.graph.nodes):
        if node.target is aten.bmm.default:
            _recompose_product(program, node)
        elif node.target is aten.where.self:
            _recompose_softmax(program, node)
        elif node.target is aten.cat.default:
            _drop_empty_parts(program, node)
    drop_dead(program.graph)


def _recompose_product(program: LiftedProgram, product: fx.Node) -> None:
    left, right = (_unflattened(operand) for operand in product.args)
    users = list(product.users)
    if left is None or right is None or not users:
        return
    wanted = _product_shape(left, right)
    if wanted is None or any(not _is_view_as(user, wanted) for user in users):
        return
    with program.graph.inserting_before(users[0]):
        whole = program.graph.call_function(aten.matmul.default, (left, right))
    whole.meta = dict(users[0].meta)
    for user in users:
        user.replace_all_uses_with(whole)
        program.graph.erase_node(user)


def _drop_empty_parts(program: LiftedProgram, joined: fx.Node) -> None:
    """Join nothing with what has no elements: no rotated dims, a cache object's first rows."""
    parts: list[fx.Node] = list(joined.args[0])  # type: ignore[arg-type]
    axis = joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)
    kept = [part for part in parts if not _is_empty(part, cast(int, axis))]
    if len(kept) == len(parts) or not kept:
        return
    if len(kept) > 1:
        joined.args = (kept, *joined.args[1:])
    elif program.output_node not in joined.users:  # a caller is not given its own tensor back
        joined.replace_all_uses_with(kept[0])
        program.graph.erase_node(joined)


def _is_empty(part: fx.Node, axis: int) -> bool:
    """Whether a part adds nothing to what is joined: ``[0]``, which joins anything, or no rows."""
    shape = symbolic_shape(part)
    return shape is not None and (shape == (0,) or (len(shape) > 0 and shape[axis] == 0))


def _recompose_softmax(program: LiftedProgram, choice: fx.Node) -> None:
    """``_safe_softmax``: zeros where every score of a row is -inf, the softmax elsewhere."""
    condition, zeros, weights = cast("tuple[Any, Any, Any]", choice.args)
    if not isinstance(weights, fx.Node) or weights.target is not aten._softmax.default:
        return
    scores, axis, _ = weights.args
    last: fx.Node = choice
    chain = (aten.logical_not.default, aten.any.dim, aten.logical_not.default, aten.eq.Scalar)
    value: Any = condition
    for target in chain:
        if not isinstance(value, fx.Node) or value.target is not target:
            return
        last, value = value, value.args[0]
    minus_infinity = last.args[1] == float("-inf")
    filled = isinstance(zeros, fx.Node) and zeros.target is aten.full_like.default
    if value is not scores or not minus_infinity or not filled or zeros.args[1] != 0:
        return
    with program.graph.inserting_before(choice):
        whole = program.graph.call_function(aten._safe_softmax.default, (scores, axis))
    whole.meta = dict(choice.meta)
    choice.replace_all_uses_with(whole)
    program.graph.erase_node(choice)


def _unflattened(value: Any) -> fx.Node | None:
    """The rank-4 value behind one of rank 3 whose first axis is batch and heads."""
    shape = symbolic_shape(value)
    node: fx.Node = value
    while node.target in _VIEWS or _is_idle_expand(node):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return None
        node = source
        whole = symbolic_shape(node)
        if whole is not None and len(whole) == 4 and not _is_copy(node):
            batch, heads, *rest = whole
            same = shape is not None and [batch * heads, *rest] == list(shape)
            return node if same else None
    return None


def _is_copy(node: fx.Node) -> bool:
    """Whether the value is a copy or an idle expand of another of the same rank."""
    return node.target is aten.clone.default or _is_idle_expand(node)


def _is_idle_expand(node: fx.Node) -> bool:
    if node.target is not aten.expand.default or not isinstance(node.args[0], fx.Node):
        return False
    return symbolic_shape(node) == symbolic_shape(node.args[0])


def _product_shape(left: fx.Node, right: fx.Node) -> list[Any] | None:
    """Shape of the product of two rank-4 values with the same batch and heads."""
    first, second = symbolic_shape(left), symbolic_shape(right)
    if first is None or second is None or first[:2] != second[:2]:
        return None
    return [*first[:3], second[3]]


def _is_view_as(node: fx.Node, shape: list[Any]) -> bool:
    return node.target in _VIEWS and list(symbolic_shape(node) or ()) == shape
