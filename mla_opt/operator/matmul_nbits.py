"""``mla_opt::MatMulNBits``: ONNX Runtime's operator, with a kernel of this library's own.

It computes what ``com.microsoft::MatMulNBits`` does. That is its function body: a runtime without
the kernel library, and a processor that the kernel is not made for, run ONNX Runtime's operator.

| input | shape | |
|---|---|---|
| ``A`` | [..., K] float32 | |
| ``B`` | [N, blocks, block_size * bits / 8] uint8 | codes q, the lowest bits first |
| ``scales`` | [N, blocks] float32 or float16 | |
| ``zero_points`` | [N, ceil(blocks * bits / 8)] uint8 | optional; 2^(bits - 1) without |
| ``g_idx`` | | never given; it keeps inputs in the places that ONNX Runtime's operator has |
| ``bias`` | [N] float32 | optional |

| output | shape | |
|---|---|---|
| ``Y`` | [..., N] float32 | ``A @ W.T + bias``, ``W = (q - zero_points) * scales`` |

``blocks = ceil(K / block_size)``. A stored tensor may have another shape of as many elements.

| attribute | type | |
|---|---|---|
| ``K``, ``N`` | int | |
| ``bits`` | int | 4 or 8 |
| ``block_size`` | int | 32, 64, 128 or 256 |
| ``accuracy_level`` | int | 4: ``A`` may be rounded to int8 |

The kernel rounds each 32 numbers of a row of ``A`` to int8, with the scale ``max |a| / 127``; ONNX
Runtime does so for each block. It needs AVX-512 with VNNI.

float16 ``scales`` are for models whose float32 ones are all float16 numbers: the same weights, of
which a step reads a tenth less.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.operator.contract import DOMAIN, VERSION

NBITS_OP_TYPE = "MatMulNBits"
RUNTIME_DOMAIN = "com.microsoft"
INPUTS = ("A", "B", "scales", "zero_points", "g_idx", "bias")
ATTRIBUTES = ("K", "N", "bits", "block_size", "accuracy_level")
SCALES = INPUTS.index("scales")

BITS = (4, 8)
BLOCK_SIZES = (32, 64, 128, 256)
INT8_ACTIVATIONS = 4
"""The accuracy level that lets ``A`` be rounded to int8."""

_STORED = {
    "B": ir.DataType.UINT8,
    "scales": ir.DataType.FLOAT,
    "zero_points": ir.DataType.UINT8,
}
_DEFAULTS = {"K": 0, "N": 0, "bits": 4, "block_size": 0, "accuracy_level": 0}


def is_nbits(node: ir.Node) -> bool:
    """Whether a node is the operator."""
    return node.domain == DOMAIN and node.op_type == NBITS_OP_TYPE


def runtimes_nbits(model: ir.Model) -> list[ir.Node]:
    """The nodes of ONNX Runtime's operator, those in branches included."""
    wanted = (RUNTIME_DOMAIN, NBITS_OP_TYPE)
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if (node.domain, node.op_type) == wanted]


def has_kernel(node: ir.Node) -> bool:
    """Whether the kernel can run a node of ONNX Runtime's operator, whose weights are stored."""
    given = dict(zip(INPUTS, node.inputs))
    stored = {name: given.get(name) for name in _STORED}
    if stored["B"] is None or stored["scales"] is None or given.get("g_idx") is not None:
        return False
    return (
        _number(node, "accuracy_level") == INT8_ACTIVATIONS
        and _number(node, "bits") in BITS
        and _number(node, "block_size") in BLOCK_SIZES
        and all(
            value is None or (value.const_value is not None and value.dtype is _STORED[name])
            for name, value in stored.items()
        )
    )


def _number(node: ir.Node, name: str) -> int | None:
    """An attribute, or its default; ``None`` where it is no number."""
    given = node.attributes.get(name)
    if given is None:
        return _DEFAULTS[name]
    return given.as_int() if given.type is ir.AttributeType.INT and not given.is_ref() else None


def take_over(node: ir.Node) -> None:
    """Make a node of ONNX Runtime's operator one of this.

    Its model needs the body (`define_nbits`).
    """
    for name, default in _DEFAULTS.items():
        node.attributes.setdefault(name, ir.AttrInt64(name, default))
    node.domain = DOMAIN


def define_nbits(model: ir.Model) -> None:
    """Give ``model`` the function body, unless it has it."""
    model.opset_imports.setdefault(DOMAIN, VERSION)
    model.opset_imports.setdefault(RUNTIME_DOMAIN, 1)
    body = _body(model.opset_imports[""])
    model.functions.setdefault(body.identifier(), body)


def _body(opset: int) -> ir.Function:
    inputs = [ir.Value(name=name) for name in INPUTS]
    scales, product = ir.Value(name="scales_float32"), ir.Value(name="Y")
    to = ir.AttrInt64("to", ir.DataType.FLOAT)
    cast = ir.Node("", "Cast", [inputs[SCALES]], [to], outputs=[scales])
    numbers = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in ATTRIBUTES]
    operands = [*inputs[:SCALES], scales, *inputs[SCALES + 1 :]]
    node = ir.Node(RUNTIME_DOMAIN, NBITS_OP_TYPE, operands, numbers, outputs=[product])
    imports = {"": opset, RUNTIME_DOMAIN: 1}
    graph = ir.Graph(inputs, [product], nodes=[cast, node], opset_imports=imports)
    declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in ATTRIBUTES]
    return ir.Function(DOMAIN, NBITS_OP_TYPE, "", graph=graph, attributes=declared)
