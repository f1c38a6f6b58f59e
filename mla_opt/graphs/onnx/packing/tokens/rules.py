"""What each operator does to values of tokens, by its definition.

An operator without a rule is one that may bring tokens together.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens import (
    axes,
    elementwise,
    lookups,
    moves,
    products,
    rotary,
)
from mla_opt.graphs.onnx.packing.tokens.operands import Rule
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk


def made_of(walk: TokenWalk, node: ir.Node) -> Sequence[State]:
    """What the outputs of a node are. Raises `MixedTokensError`."""
    return [_made(walk, node, output) for output in node.outputs]


def _made(walk: TokenWalk, node: ir.Node, output: ir.Value) -> State:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) == ("com.microsoft", "PagedAttention"):
        return Along(0) if output is node.outputs[0] else "cache"
    if walk.is_number(output):
        return "same"
    if (domain, node.op_type) in _SIZES:
        return "count"
    read = [walk.state(value) for value in node.inputs if value is not None]
    if "cache" in read:
        raise MixedTokensError("it reads rows of all tokens from a cache")
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        raise MixedTokensError("what its branches do is not followed")
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        raise MixedTokensError("it makes random numbers")
    if all(state == "same" for state in read):
        return "same"
    if all(isinstance(state, str) for state in read) and not _fills(node, read[0]):
        return "count"
    rule = RULES.get((domain, node.op_type))
    if rule is None:
        raise MixedTokensError("it may bring tokens together")
    state = rule(walk, node)
    _check(walk, output, state)
    return state


def _check(walk: TokenWalk, output: ir.Value, state: State) -> None:
    """The shape has to say the same."""
    if isinstance(state, Along) and walk.by_shape(output) != state:
        raise MixedTokensError("where its tokens lie is not known")


_SIZES = {("", "Shape"), ("", "Size"), ("", "Range")}


def _fills(node: ir.Node, first: State) -> bool:
    """Whether a node repeats what is the same for all tokens by a count."""
    return node.op_type == "ConstantOfShape" or (
        node.op_type in ("Expand", "Tile") and first == "same"
    )


_UNARY = (
    *("Identity", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Tanh", "Not"),
    *("Sigmoid", "Relu", "Gelu", "Softplus", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Sign"),
    *("Sin", "Cos", "Clip", "Elu", "LeakyRelu", "HardSigmoid", "HardSwish", "Mish", "Selu"),
    *("ThresholdedRelu", "Swish", "Softsign", "BitwiseNot"),
)
_SEVERAL = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "PRelu"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
)
_REDUCED = (
    *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_NORMALIZED = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")

RULES: dict[tuple[str, str], Rule] = {
    **{("", name): elementwise.like_first for name in (*_UNARY, *_QUANTIZED)},
    **{("", name): elementwise.elementwise for name in _SEVERAL},
    **{("", name): axes.reduced for name in _REDUCED},
    **{(domain, name): axes.normalized for domain in ("", "com.microsoft") for name in _NORMALIZED},
    **{("", name): axes.along_axis(-1) for name in ("Softmax", "LogSoftmax", "Hardmax", "TopK")},
    **{("", name): moves.regrouped for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    **{("", name): moves.repeated for name in ("Expand", "Tile")},
    **{("", name): lookups.one_by_one for name in ("GatherElements", "ScatterElements")},
    **{("", name): axes.best for name in ("ArgMax", "ArgMin")},
    **{("", name): products.product for name in ("MatMul", "MatMulInteger")},
    **{("com.microsoft", n): products.stored_product for n in ("MatMulNBits", "MatMulBnb4")},
    **{("com.microsoft", n): elementwise.like_first for n in ("QuickGelu", "Gelu", *_QUANTIZED)},
    ("", "CastLike"): elementwise.cast_like,
    ("", "LpNormalization"): axes.along_axis(-1),
    ("", "CumSum"): axes.cumulated,
    ("", "Transpose"): moves.transposed,
    ("", "ConstantOfShape"): moves.filled,
    ("", "Concat"): moves.joined,
    ("", "Split"): moves.split,
    ("", "Slice"): moves.sliced,
    ("", "Pad"): moves.padded,
    ("", "Gather"): lookups.gathered,
    ("", "GatherND"): lookups.looked_up,
    ("", "OneHot"): lookups.one_hot,
    ("", "Gemm"): products.gemm,
    ("", "Einsum"): products.einsum,
    ("", "RotaryEmbedding"): rotary.rotated,
    ("com.microsoft", "RotaryEmbedding"): rotary.rotated_by_positions,
    ("com.microsoft", "FusedMatMul"): products.product,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): axes.skipped,
    ("com.microsoft", "SkipLayerNormalization"): axes.skipped,
}
