"""What torch.onnx.export is told of the operators: any signature of each, as one schema.

The schemas aren't registered: that would hide the bodies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from mla_opt.operator import contract, multi_head
from mla_opt.operator.contract import DOMAIN, OUTPUTS, VERSION

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_BYTES = ["tensor(int8)", "tensor(uint8)", "tensor(float8e4m3fn)", "tensor(float8e5m2)"]
# Type variable of each input, and what it stands for; caches have C.
_TYPES = {
    "query": "T",
    "latent": "T",
    "past_len": "I",
    "bias": "B",
    "sink": "T",
    "output": "T",
    "kv_b": "W",
    "kv_b_scales": "S",
    "kv_b_zero_points": "Z",
    "kv_b_factors": "F",
}
_CONSTRAINTS = {
    "T": _FLOATS,
    "C": _FLOATS,
    "I": ["tensor(int32)"],
    "B": ["tensor(bool)", *_FLOATS],
    "W": [*_FLOATS, *_BYTES],
    "S": _FLOATS,
    "Z": [*_FLOATS, *_BYTES],
    "F": ["tensor(float)"],
}
_Kind = onnx.defs.OpSchema.AttrType
_KINDS: Mapping[str, onnx.defs.OpSchema.AttrType] = {
    "scale": _Kind.FLOAT,
    "form": _Kind.STRING,
    "plugin_namespace": _Kind.STRING,
    "plugin_version": _Kind.STRING,
}
"""Types of attributes; all others are whole numbers."""


def schema() -> onnx.defs.OpSchema:
    """Return that of ``LatentAttention``."""
    return _schema(contract.OP_TYPE, contract.INPUTS, ("query",), contract.ATTRIBUTES)


def multi_head_schema() -> onnx.defs.OpSchema:
    """Return that of ``MultiHeadLatentAttention``."""
    required = ("query", "kv_b")
    return _schema(
        multi_head.MULTI_HEAD_OP_TYPE, multi_head.INPUTS, required, multi_head.ATTRIBUTES
    )


def _schema(
    op_type: str, inputs: Sequence[str], required: Sequence[str], attributes: Sequence[str]
) -> onnx.defs.OpSchema:
    variables = {_TYPES.get(name, "C") for name in (*inputs, *OUTPUTS)}
    return onnx.defs.OpSchema(
        op_type,
        DOMAIN,
        VERSION,
        inputs=[_parameter(name, optional=name not in required) for name in inputs],
        outputs=[_parameter(name, optional=name != "output") for name in OUTPUTS],
        type_constraints=[
            (name, types, "") for name, types in _CONSTRAINTS.items() if name in variables
        ],
        attributes=[
            onnx.defs.OpSchema.Attribute(name, _KINDS.get(name, _Kind.INT), required=True)
            for name in attributes
        ],
    )


def _parameter(name: str, optional: bool) -> onnx.defs.OpSchema.FormalParameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    return onnx.defs.OpSchema.FormalParameter(
        name,
        _TYPES.get(name, "C"),
        param_option=options.Optional if optional else options.Single,
    )
