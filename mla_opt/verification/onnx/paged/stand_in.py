"""A model with standard operators in the place of PagedAttention, to be run on the CPU.

And its twin that rounds nothing in front of the operator, nor any row: behind the rounding of a
model in float32 to 16 bits, or of rows to 8, an error could hide.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.onnx.paged_body import PagedBody
from mla_opt.operator.paged_attention import (
    CALL,
    DOMAIN,
    INPUTS,
    OP_TYPE,
    TYPES,
    PagedSignature,
)

_KEY_CACHE, _K_SCALE = INPUTS.index("key_cache"), INPUTS.index("k_scale")


def paged_attentions(model: ir.Model) -> list[ir.Node]:
    """The operator's nodes, in order.

    Raises:
        InputError: one is not what mla-opt writes, so its definition is not that of the stand-in.
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    for node in nodes:
        _check(node)
    return nodes


def _check(node: ir.Node) -> None:
    given = {name for name, value in zip(INPUTS, node.inputs) if value is not None}
    wanted = {"query", "key", "key_cache", *CALL}
    extra = set(node.attributes) - set(PagedSignature(1, 1, 1.0, quantized=True).attributes())
    if given - {"k_scale"} != wanted or len(node.inputs) > len(INPUTS) or extra:
        raise InputError(
            f"node {node.name or OP_TYPE!r} is no {OP_TYPE} as mla-opt writes it (inputs"
            f" {', '.join(sorted(given))}; other attributes: {', '.join(sorted(extra)) or 'none'});"
            " verify the file as mla-opt wrote it"
        )


def with_stand_in(model: ir.Model) -> ir.Model:
    """A copy that shares the stored tensors, and that ONNX Runtime's CPU provider runs."""
    copy = model.clone()
    for node in paged_attentions(copy):
        body = PagedBody(node)
        copy.graph.insert_before(node, body.nodes)
        for old, new in zip(node.outputs, (body.output, body.cache)):
            _replace(old, new)
        copy.graph.remove(node, safe=True)
    return copy


def _replace(old: ir.Value, new: ir.Value) -> None:
    name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name, new.name = None, name


def scale_of(node: ir.Node) -> ir.Value | None:
    """The input with the scales of a cache of codes."""
    return node.inputs[_K_SCALE] if len(node.inputs) > _K_SCALE else None


def cache_of(node: ir.Node) -> ir.Value:
    """The blocks that a node reads."""
    cache = node.inputs[_KEY_CACHE]
    assert cache is not None
    return cache


def with_exact_rows(model: ir.Model) -> ir.Model:
    """The twin that keeps rows and queries in the type of the model; itself where it does."""
    if not any(_rounds(node) for node in paged_attentions(model)):
        return model
    twin = model.clone()
    for node in paged_attentions(twin):
        _widen(twin, node)
    return twin


def _rounds(node: ir.Node) -> bool:
    kinds = {value.dtype for value in (node.inputs[0], cache_of(node)) if value is not None}
    return len(kinds) > 1 or _before(node.inputs[0]) is not node.inputs[0]


def _before(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was rounded from float32 to 16 bits, if it was."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Cast" or value is None or value.dtype is None:
        return value
    source = node.inputs[0]
    narrow = str(value.dtype.numpy()) in TYPES
    wide = source is not None and source.dtype == ir.DataType.FLOAT
    return source if narrow and wide else value


def _widen(model: ir.Model, node: ir.Node) -> None:
    for place in (0, 1):
        exact = _before(node.inputs[place])
        node.replace_input_with(place, exact)
    query, scale = node.inputs[0], scale_of(node)
    assert query is not None and query.dtype is not None
    for value in (cache_of(node), *node.outputs):
        value.type = ir.TensorType(query.dtype)  # a clone shares the type that was
    if scale is not None:
        node.replace_input_with(_K_SCALE, None)
        del node.attributes["k_quant_type"]
        if not scale.uses():
            model.graph.inputs.remove(scale)
