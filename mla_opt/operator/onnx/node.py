"""What the operands of a ``LatentAttention`` node say of its signature, and the body it needs.

While a model is rewritten, a body goes by its overload; :func:`settle` gives each the name under
which the file has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from mla_opt.operator.contract import (
    DOMAIN,
    OP_TYPE,
    OP_TYPES,
    VERSION,
    BiasKind,
    CodesKind,
    Signature,
    is_operator,
)
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPES, is_multi_head
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle
from mla_opt.operator.onnx.body_tape import CAST_LIKE_SINCE
from mla_opt.operator.onnx.function_body import function_body
from mla_opt.operator.quantized_rows import is_codes

MakeBody = Callable[[int, str, ir.DataType], ir.Function]
"""Makes a function body for an opset, under an overload, for elements of a type."""


def signature_of(
    operands: Mapping[str, ir.Value], causal: bool, *, even: bool = False
) -> Signature:
    """Return the signature of a node with these operands, whose types are known.

    ``even`` says that its caches hold halves of rows.
    """
    return Signature(
        has_latent="latent" in operands,
        has_cache="cache" in operands,
        in_place="past_len" in operands,
        split="rope_cache" in operands,
        bias=_bias_kind(operands),
        sink="sink" in operands,
        causal=causal,
        narrow=_is_narrow(operands),
        codes=_codes_kind(operands),
        even=even,
    )


def define(
    model: ir.Model,
    signature: Signature,
    element_type: ir.DataType | None,
    *,
    style: BodyStyle = ONNX_RUNTIME,
) -> str:
    """Give ``model`` the function body of ``signature``, unless it has it; return its overload."""

    def make(opset: int, overload: str, element: ir.DataType) -> ir.Function:
        return function_body(signature, opset, overload=overload, element_type=element, style=style)

    return define_body(model, OP_TYPE, signature.overload, element_type, make)


def define_body(
    model: ir.Model,
    op_type: str,
    overload: str,
    element_type: ir.DataType | None,
    make: MakeBody,
) -> str:
    """Give ``model`` the body of an overload, unless it has it; return the overload.

    Before ``CastLike`` a body is of one type, which its overload names then.
    """
    model.opset_imports.setdefault(DOMAIN, VERSION)
    opset, element = model.opset_imports[""], element_type or ir.DataType.FLOAT
    of_one_type = opset < CAST_LIKE_SINCE
    overload = f"{overload}_{element.name.lower()}" if of_one_type else overload
    if (DOMAIN, op_type, overload) not in model.functions:  # sites are alike, and bodies long
        body = make(opset, overload, element)
        model.functions[body.identifier()] = body
    return overload


def settle(model: ir.Model) -> None:
    """Give every body a name of its own, the most frequent ones first, and drop what is not called.

    Where there are more bodies than names, the rarest are put in the place of their calls, which
    then no kernel stands for.
    """
    _settle_operator(model, is_operator, OP_TYPES)
    _settle_operator(model, is_multi_head, MULTI_HEAD_OP_TYPES)


def _settle_operator(
    model: ir.Model, is_ours: Callable[[str, str], bool], op_types: Sequence[str]
) -> None:
    calls = [node for node in _all_nodes(model) if is_ours(node.domain, node.op_type)]
    uses = Counter(node.op_identifier() for node in calls)
    ours = [key for key in model.functions if is_ours(*key[:2])]
    bodies = {key: model.functions.pop(key) for key in ours}
    called = sorted((key for key in ours if uses[key]), key=lambda key: -uses[key])
    rare = called[len(op_types) :]
    names = dict(zip(called, op_types))
    for key, name in names.items():
        bodies[key].name, bodies[key].overload = name, ""
        model.functions[bodies[key].identifier()] = bodies[key]
    for node in calls:
        if node.op_identifier() in names:
            node.op_type, node.overload = names[node.op_identifier()], ""
    if rare:
        model.functions.update({key: bodies[key] for key in rare})
        common.InlinePass(criteria=lambda function: function.identifier() in rare)(model)


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes of the main graph and of all branches."""
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def _codes_kind(operands: Mapping[str, ir.Value]) -> CodesKind:
    cache = operands.get("cache")
    if cache is None or cache.dtype is None or not is_codes(cache.dtype.numpy()):
        return "none"
    return "int8" if cache.dtype == ir.DataType.INT8 else "float8_e4m3fn"


def _is_narrow(operands: Mapping[str, ir.Value]) -> bool:
    cache = operands.get("cache")
    if cache is None or _codes_kind(operands) != "none":
        return False
    return cache.dtype != operands["query"].dtype


def _bias_kind(operands: Mapping[str, ir.Value]) -> BiasKind:
    bias = operands.get("bias")
    if bias is None:
        return "none"
    return "boolean" if bias.dtype == ir.DataType.BOOL else "additive"
