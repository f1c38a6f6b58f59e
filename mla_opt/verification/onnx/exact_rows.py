"""A model with its latent rows in floats, to be compared in place of one that keeps codes.

Rows of 8 bits are a step of their scale away from what they stand for, which says little of whether
a model is right: behind such a difference an error could hide. So the same model is compared with
caches of float32::

    codes, scales --> LatentAttention (codes)   --->   c_kv, k_pe --> LatentAttention (floats)

and how far the codes take it from that is told by the drift. There is nothing to put in their place
where operators have been written out; such a model is compared as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import onnx_ir as ir

from mla_opt.operator import contract
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, Form, is_multi_head
from mla_opt.operator.onnx.multi_head_node import (
    define_multi_head,
    multi_head_signature_of,
    storage_of,
)
from mla_opt.operator.onnx.node import define, settle, signature_of
from mla_opt.operator.quantized_rows import is_codes
from mla_opt.verification.site_records import read_sites

Operands = Mapping[str, ir.Value]


def with_exact_rows(model: ir.Model) -> ir.Model:
    """The model with caches of float32 in the place of codes; itself where it has none."""
    if not _quantized(model):
        return model
    twin = model.clone()
    found = _quantized(twin)
    widths = {site.query: site.qk_rope_head_dim for site in read_sites(twin)}
    for node, operands in found:
        rope = widths.get(operands["query"].name or "", _rope_dim(node, operands))
        _widen(node, operands, rope)
    for node, operands in found:
        _redefine(twin, node, operands)
    settle(twin)
    return twin


def _quantized(model: ir.Model) -> list[tuple[ir.Node, Operands]]:
    """The operators that read codes, with their operands by name."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    read = [(node, _operands(node)) for node in nodes if _is_ours(node)]
    return [(node, operands) for node, operands in read if _reads_codes(operands)]


def _is_ours(node: ir.Node) -> bool:
    return contract.is_operator(node.domain, node.op_type) or is_multi_head(
        node.domain, node.op_type
    )


def _operands(node: ir.Node) -> Operands:
    holds_weights = is_multi_head(node.domain, node.op_type)
    names = MULTI_HEAD_INPUTS if holds_weights else contract.INPUTS
    return {name: value for name, value in zip(names, node.inputs) if value is not None}


def _reads_codes(operands: Operands) -> bool:
    cache = operands.get("cache")
    return cache is not None and cache.dtype is not None and is_codes(cache.dtype.numpy())


def _widen(node: ir.Node, operands: Operands, rope: int | None) -> None:
    """Floats in and out; what is beside the codes is as wide as ``k_pe``."""
    beside = [operands["rope_cache"], *node.outputs[2:3]]
    for value in (operands["cache"], *node.outputs[1:2], *beside):
        value.type = ir.TensorType(ir.DataType.FLOAT)  # the clone shares the type that was
    for value in beside:
        if value.shape is not None:
            value.shape = ir.Shape([*value.shape[:-1], rope])


def _rope_dim(node: ir.Node, operands: Operands) -> int | None:
    """R, where a row or the query tells it; for operators that the metadata does not name."""
    rank = node.attributes.get_int("kv_lora_rank", 0)
    before = node.attributes.get_int("qk_nope_head_dim", rank)
    for name, others in (("latent", rank), ("query", before)):
        value = operands.get(name)
        width = value.shape[-1] if value is not None and value.shape is not None else None
        if isinstance(width, int):
            return width - others
    return None


def _redefine(model: ir.Model, node: ir.Node, operands: Operands) -> None:
    """Call the operator that reads floats."""
    causal, kind = bool(node.attributes.get_int("causal", 0)), operands["query"].dtype
    if is_multi_head(node.domain, node.op_type):
        signature = multi_head_signature_of(
            operands,
            storage_of(node, operands),
            cast(Form, node.attributes.get_string("form", "auto")),
            causal,
        )
        node.op_type, node.overload = MULTI_HEAD_OP_TYPE, define_multi_head(model, signature, kind)
    else:
        plain = signature_of(operands, causal)
        node.op_type, node.overload = contract.OP_TYPE, define(model, plain, kind)
