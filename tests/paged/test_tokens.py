"""What may lie between the attentions of packed tokens, and what may not: graphs in words."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.tokens.mixing import first_mixing

T = "num_tokens"


def graph(text: str) -> OnnxGraph:
    """A graph over tokens ``x [1, T, 8]`` and ``n [1, T]``, in ONNX's text."""
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["": 21, "com.microsoft": 1]>\n'
        f"g (float[1, {T}, 8] x, int64[1, {T}] n, float[8, 8] w) => (float[1, {T}, 8] y)\n"
        f"<float[8, 8] stored = {{{', '.join(['0.5'] * 64)}}}>\n{{ {text} }}"
    )
    return OnnxGraph(model)


def mixing(text: str) -> str:
    """What is said of a graph; empty if nothing brings tokens together."""
    node, reason = first_mixing(graph(text), T)
    return reason if node is None else f"{node.op_type}: {reason}"


APART = {
    "matmul": "y = MatMul(x, stored)",
    "residual": "a = MatMul(x, stored) b = Sigmoid(a) y = Add(b, x)",
    "norm": "s = Constant<value = float[8] {1,1,1,1,1,1,1,1}>() y = LayerNormalization(x, s)",
    "softmax": "y = Softmax<axis = -1>(x)",
    "flattened": "s = Constant<value_ints = [-1, 8]>() a = Reshape(x, s) b = Gemm(a, stored)"
    " c = Constant<value_ints = [1, -1, 8]>() y = Reshape(b, c)",
    "heads": "s = Constant<value_ints = [0, 0, 2, 4]>() a = Reshape(x, s)"
    " b = Transpose<perm = [0, 2, 1, 3]>(a) c = Exp(b) d = Transpose<perm = [0, 2, 1, 3]>(c)"
    " e = Constant<value_ints = [0, 0, 8]>() y = Reshape(d, e)",
    "by shape": "a = Shape<start = 0, end = 2>(x) e = Constant<value_ints = [8]>()"
    " s = Concat<axis = 0>(a, e) z = ConstantOfShape(s) y = Add(x, z)",
    "columns": "a = Transpose<perm = [0, 2, 1]>(x) b = MatMul(stored, a)"
    " y = Transpose<perm = [0, 2, 1]>(b)",
    "experts": "k = Constant<value_ints = [2]>() v, i = TopK(x, k)"
    " a = ReduceSum<keepdims = 1>(v, m) y = Div(x, a) m = Constant<value_ints = [-1]>()",
    "one row for each expert": "u = Constant<value_ints = [2]>() a = Unsqueeze(x, u)"
    " s = Constant<value_ints = [1, 1, 2, 1]>() b = Expand(a, s)"
    " f = Constant<value_ints = [-1, 8]>() c = Reshape(b, f) d = MatMul(c, stored)"
    " h = Constant<value_ints = [1, -1, 2, 8]>() e = Reshape(d, h) y = ReduceSum<keepdims=0>(e, u)",
    "own numbers": "s = Shape<start = 1, end = 2>(x) z = Constant<value_int = 0>()"
    " o = Constant<value_int = 1>() q = Constant<value_ints = [0]>() l = Squeeze(s, q)"
    " r = Range(z, l, o) y = Gather<axis = 1>(x, r)",
    "einsum": 'y = Einsum<equation = "btd,de->bte">(x, stored)',
    "stored rows": "y = Gather(stored, n)",
    "rotary by positions": "a = Constant<value_ints = [0]>() e = Constant<value_ints = [4]>()"
    " o = Constant<value_ints = [1]>() c = Slice(stored, a, e, o)"
    " y = com.microsoft.RotaryEmbedding<num_heads = 1>(x, n, c, c)",
}

MIXED = {
    "sum over tokens": ("a = Constant<value_ints = [1]>() b = ReduceMean(x, a) y = Add(x, b)",
                        "ReduceMean: it works along the axis of the tokens"),
    "scores": ("a = Transpose<perm = [0, 2, 1]>(x) b = MatMul(x, a) c = Softmax(b)"
               " y = MatMul(c, x)", "MatMul: it multiplies tokens with each other"),
    "norm over tokens": ("s = Constant<value = float[8] {1,1,1,1,1,1,1,1}>()"
                         " y = LayerNormalization<axis = 1>(x, s)",
                         "LayerNormalization: it works along the axis of the tokens"),
    "place in the call": ("p = Constant<value_ints = [3]>() a = Constant<value_ints = [0]>()"
                          " e = Constant<value_ints = [4]>() o = Constant<value_ints = [1]>()"
                          " c = Slice(stored, a, e, o)"
                          " y = com.microsoft.RotaryEmbedding<num_heads = 1>(x, p, c, c)",
                          "RotaryEmbedding: it rotates by the place in the call"),
    "every other token": ("s = Shape<start = 1, end = 2>(x) z = Constant<value_int = 0>()"
                          " o = Constant<value_int = 1>() q = Constant<value_ints = [0]>()"
                          " l = Squeeze(s, q) r = Range(z, l, o) d = Constant<value_int = 2>()"
                          " t = Mul(r, d) y = Gather<axis = 1>(x, t)",
                          "Gather: it looks up other tokens"),
    "softmax": ("y = Softmax<axis = 1>(x)", "Softmax: it works along the axis of the tokens"),
    "cumulated": ("a = Constant<value_int = 1>() y = CumSum(x, a)",
                  "CumSum: it works along the axis of the tokens"),
    "last token": ("a = Constant<value_ints = [-1]>() e = Constant<value_ints = [999999999]>()"
                   " c = Constant<value_ints = [1]>() y = Slice(x, a, e, c)",
                   "Slice: it takes some of the tokens, such as the last"),
    "reversed": ("a = Constant<value_ints = [-1]>() e = Constant<value_ints = [-9999999999]>()"
                 " c = Constant<value_ints = [1]>() y = Slice(x, a, e, c, a)", "Slice: it takes"),
    "shifted": ("p = Constant<value_ints = [0, 1, 0, 0, -1, 0]>() y = Pad(x, p)",
                "Pad: it pads along the axis of the tokens"),
    "cut apart": ("a = Constant<value_ints = [1, 4, -1, 8]>() b = Reshape(x, a)"
                  " c = Transpose<perm = [0, 2, 1, 3]>(b) d = Constant<value_ints = [1, -1, 8]>()"
                  " y = Reshape(c, d)", "Reshape: "),
    "turned": ("a = Constant<value_ints = [1, 8, -1]>() b = Reshape(x, a)"
               " y = Transpose<perm = [0, 2, 1]>(b)", "Reshape: it cuts tokens apart"),
    "convolution": ("a = Transpose<perm = [0, 2, 1]>(x) u = Constant<value_ints = [2]>()"
                    " k = Unsqueeze(stored, u) b = Conv(a, k) y = Transpose<perm = [0, 2, 1]>(b)",
                    "Conv: it may bring tokens together"),
    "counted": ("s = Shape<start = 1, end = 2>(x) f = Cast<to = 1>(s) y = Div(x, f)",
                "Div: f follows from how many tokens there are"),
    "own places": ("s = Shape<start = 1, end = 2>(x) z = Constant<value_int = 0>()"
                   " o = Constant<value_int = 1>() q = Constant<value_ints = [0]>()"
                   " l = Squeeze(s, q) r = Range(z, l, o) y = Gather(stored, r)",
                   "output 'y' is not"),
    "other tokens": ("y = GatherElements<axis = 1>(x, i) i = Cast<to = 7>(x)",
                     "GatherElements: it works along the axis of the tokens"),
    "looked up": ("a = Constant<value_ints = [0]>() m = Squeeze(n, a) y = Gather<axis = 1>(x, m)",
                  "Gather: it looks up tokens by numbers"),
    "some of them": ("a = NonZero(n) b = Transpose(a) c = GatherND(x, b)"
                     " d = Constant<value_ints = [1, -1, 8]>() y = Reshape(c, d)", "NonZero: "),
    "noise": ("a = RandomNormalLike(x) y = Add(x, a)", "RandomNormalLike: it makes random"),
    "scale of all": ("a, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(a, s, z)",
                     "DynamicQuantizeLinear: it may bring tokens together"),
    "einsum": ('y = Einsum<equation = "btd,bsd->bts">(x, x)', "Einsum: it multiplies tokens"),
    "a branch": ("c = Constant<value = bool {1}>() y = If (c) <then_branch = t () =>"
                 f" (float[1, {T}, 8] p) {{ p = Identity(x) }}, else_branch = e () =>"
                 f" (float[1, {T}, 8] q) {{ q = Neg(x) }}>", "If: what its branches do"),
}  # fmt: skip


@pytest.mark.parametrize("text", APART.values(), ids=APART)
def test_tokens_by_themselves(text: str) -> None:
    assert mixing(text) == ""


@pytest.mark.parametrize(("text", "told"), MIXED.values(), ids=MIXED)
def test_tokens_that_meet(text: str, told: str) -> None:
    assert mixing(text).startswith(told)
