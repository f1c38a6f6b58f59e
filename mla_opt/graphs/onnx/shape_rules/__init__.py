"""Shapes that ONNX operators make, as expressions: one small function a family of operators.

Every rule says what the operator's definition says, at every size. A size that it cannot say is one
of its own (:meth:`Facts.unknown`), a shape that it cannot say is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.shape_rules import (
    attentions,
    branches,
    elementwise,
    gathers,
    layout,
    made,
    products,
    reductions,
    slices,
)
from mla_opt.graphs.onnx.shape_rules.facts import Facts, Rule, Shape


def shapes_of(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Return the shape of every output; those at the end may be left out."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    return () if rule is None else rule(facts, node)


RULES: dict[tuple[str, str], Rule] = {
    **{
        ("", name): elementwise.of_elementwise
        for name in (
            *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where"),
            *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
            *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu"),
        )
    },
    **{
        ("", name): elementwise.of_like_first
        for name in (
            *("Identity", "Cast", "CastLike", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log"),
            *("Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Softplus", "Floor", "Ceil", "Round"),
            *("Not", "IsNaN", "IsInf", "Sign", "Sin", "Cos", "Clip", "Elu", "LeakyRelu"),
            *("HardSigmoid", "HardSwish", "Mish", "Selu", "ThresholdedRelu", "Trilu", "CumSum"),
            *("Softmax", "LogSoftmax", "Hardmax", "Dropout", "ScatterND", "ScatterElements"),
            *("Scatter", "RotaryEmbedding", "LpNormalization", "QuantizeLinear", "Swish"),
            *("DequantizeLinear", "DynamicQuantizeLinear", "TensorScatter", "BitwiseNot"),
        )
    },
    **{
        ("", name): elementwise.of_normalized
        for name in ("LayerNormalization", "RMSNormalization", "GroupNormalization")
    },
    **{
        ("", name): reductions.of_reduced
        for name in (
            *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        )
    },
    ("", "If"): branches.of_conditional,
    ("", "Constant"): made.of_constant,
    ("", "Shape"): made.of_shape,
    ("", "Size"): made.of_scalar,
    ("", "Transpose"): layout.of_transpose,
    ("", "Reshape"): layout.of_reshape,
    ("", "Expand"): layout.of_expand,
    ("", "Tile"): layout.of_tile,
    ("", "Slice"): slices.of_slice,
    ("", "Concat"): layout.of_concat,
    ("", "Gather"): gathers.of_gather,
    ("", "GatherElements"): gathers.of_indices_like,
    ("", "GatherND"): gathers.of_gather_nd,
    ("", "Compress"): gathers.of_compressed,
    ("", "NonZero"): gathers.of_found,
    ("", "Unsqueeze"): layout.of_unsqueeze,
    ("", "Squeeze"): layout.of_squeeze,
    ("", "Split"): layout.of_split,
    ("", "Flatten"): layout.of_flatten,
    ("", "Pad"): layout.of_pad,
    ("", "ConstantOfShape"): made.of_filled,
    ("", "Range"): made.of_range,
    ("", "MatMul"): products.of_matmul,
    ("", "MatMulInteger"): products.of_matmul,
    ("", "Gemm"): products.of_gemm,
    ("", "Einsum"): products.of_einsum,
    ("", "ArgMax"): reductions.of_arg,
    ("", "ArgMin"): reductions.of_arg,
    ("", "TopK"): reductions.of_top,
    ("", "Conv"): products.of_conv,
    ("", "Attention"): attentions.of_attention,
    ("com.microsoft", "MultiHeadAttention"): attentions.of_multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): attentions.of_group_query_attention,
    ("com.microsoft", "PagedAttention"): attentions.of_paged_attention,
    ("com.microsoft", "FusedMatMul"): products.of_matmul,
    # The sum over all ranks is as large as what each has.
    ("com.microsoft", "AllReduce"): elementwise.of_like_first,
    ("com.microsoft", "MatMulNBits"): products.of_quantized_matmul,
    ("com.microsoft", "MatMulBnb4"): products.of_quantized_matmul,
    ("com.microsoft", "GatherBlockQuantized"): gathers.of_gather_quantized,
    **{
        ("com.microsoft", name): elementwise.of_like_first
        for name in (
            *("FastGelu", "QuickGelu", "BiasGelu", "Gelu", "RotaryEmbedding"),
            *("QuantizeLinear", "DequantizeLinear", "QLinearSoftmax", "QLinearSigmoid"),
        )
    },
    **{
        ("com.microsoft", name): elementwise.of_normalized
        for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    },
    ("", "SimplifiedLayerNormalization"): elementwise.of_normalized,
    ("com.microsoft", "SimplifiedLayerNormalization"): elementwise.of_normalized,
}
