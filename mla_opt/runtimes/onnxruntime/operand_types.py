"""Which types of an operator's inputs do not go together.

ONNX Runtime says only that no kernel fits a node; what is wrong with it is found here.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from mla_opt.operator.contract import INPUTS, OP_TYPE, is_operator
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, is_multi_head
from mla_opt.operator.quantized_rows import is_codes

#: Types of a query for which there is a kernel.
QUERY_TYPES = ("float32", "float16", "bfloat16", "float64")
#: Types of the caches of float32 queries, besides float32.
NARROW_TYPES = ("float16", "bfloat16", "int8", "float8_e4m3fn")


def wrong_operand_types(model: ir.Model) -> str | None:
    """Return the first input whose type fits no kernel, in words; ``None`` where none is known."""
    for graph in model.graphs():
        for node in graph:
            for is_ours, op_type, inputs in _OPERATORS:
                if is_ours(node.domain, node.op_type):
                    for wrong in _wrong(node, inputs):
                        return f"{op_type} {node.name!r}: {wrong}"
    return None


_OPERATORS = (
    (is_operator, OP_TYPE, INPUTS),
    (is_multi_head, MULTI_HEAD_OP_TYPE, MULTI_HEAD_INPUTS),
)


def _wrong(node: ir.Node, inputs: tuple[str, ...]) -> Iterator[str]:
    types = {
        name: value.dtype.numpy().name
        for name, value in zip(inputs, node.inputs)
        if value is not None and value.dtype is not None
    }
    query = types.get("query", "")
    cache = types.get("cache", query)
    if not query:
        return
    if query not in QUERY_TYPES:
        yield f"query is {query}, expected one of {', '.join(QUERY_TYPES)}"
    allowed = {
        "latent": (query,),
        "cache": (query, *(NARROW_TYPES if query == "float32" else ())),
        "past_len": ("int32",),
        "bias": ("bool", query),
        "sink": (query,),
        "rope_cache": ("bfloat16",) if is_codes(cache or query) else (cache,),
    }
    for name, kinds in allowed.items():
        if name in types and types[name] not in kinds:
            yield f"{name} is {types[name]}, expected {' or '.join(kinds)} for a query of {query}"
