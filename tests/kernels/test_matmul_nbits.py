"""The kernel of ``mla_opt::MatMulNBits`` in ONNX Runtime, against its definition in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.handles import Array
from mla_opt.kernels.library import has_matmul_nbits, kernel_available, use_cpu_tier
from tests.kernels.host import session
from tests.operator.test_matmul_nbits import LAYERS, Layer, taken_over

needs_vnni = pytest.mark.skipif(
    not (kernel_available() and has_matmul_nbits()),
    reason="this processor has no AVX-512 VNNI",
)
PART = 32
#: DeepSeek-V2-Lite's down_proj, and its kv_a_proj, whose last panel is half empty.
REAL = [Layer(10944, 2048), Layer(2048, 576, zero_points=True), Layer(2048, 576, bits=8)]


def rounded(rows: Array) -> Array:
    """Rows as the kernel rounds them."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % PART)))
    parts = padded.reshape(len(rows), -1, PART)
    scales = np.abs(parts).max(-1, keepdims=True) / np.float32(127)
    by = np.float32(1) / np.where(scales > 0, scales, 1).astype(np.float32)
    numbers: Array = np.rint(parts * by).astype(np.float64) * scales
    return numbers.reshape(padded.shape)[:, : rows.shape[1]]


def check(layer: Layer, count: int, *, narrow: bool = False) -> None:
    rows = np.random.default_rng(count).standard_normal((count, layer.inner)).astype(np.float32)
    model = ir.to_proto(taken_over(layer.model(), narrow=narrow))
    (made,) = session(model).run(None, {"A": rows})
    exact, spread = layer.times(rows), layer.times(rows).std()
    assert np.abs(made - layer.times(rounded(rows))).max() < 1e-5 * spread
    # What int8 activations cost, and no more: it shows that they are what was rounded.
    assert 1e-4 * spread < np.sqrt(np.mean((made - exact) ** 2)) < 1e-2 * spread


@needs_vnni
@pytest.mark.parametrize("count", [1, 3, 7, 8, 29])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_small_layers(layer: Layer, count: int) -> None:
    check(layer, count, narrow=count % 2 == 0)


@needs_vnni
@pytest.mark.parametrize("count", [1, 2, 128])
@pytest.mark.parametrize("layer", REAL, ids=str)
def test_real_layers(layer: Layer, count: int) -> None:
    check(layer, count, narrow=count > 1)


@needs_vnni
def test_more_rows_than_are_rounded_at_a_time() -> None:
    check(Layer(zero_points=True, bias=True), 1024 + 5)


@needs_vnni
def test_rows_of_any_rank_and_none() -> None:
    layer = Layer()
    proto = ir.to_proto(taken_over(layer.model()))
    for shape in ([2, 3, layer.inner], [layer.inner], [0, layer.inner]):
        for info, last in ((proto.graph.input[0], layer.inner), (proto.graph.output[0], 40)):
            info.type.tensor_type.ClearField("shape")
            for size in (*shape[:-1], last):
                info.type.tensor_type.shape.dim.add().dim_value = size
        rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        (made,) = session(proto).run(None, {"A": rows})
        assert made.shape == (*shape[:-1], layer.columns)
        flat = rows.reshape(-1, layer.inner)
        expected = layer.times(rounded(flat)) if len(flat) else np.empty((0, layer.columns))
        np.testing.assert_allclose(made.reshape(expected.shape), expected, rtol=0, atol=1e-5)


@needs_vnni
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(number: float, count: int) -> None:
    """In the rows that have it, and in no other."""
    layer = Layer()
    rows = np.random.default_rng(0).standard_normal((count, layer.inner)).astype(np.float32)
    rows[-1, 40] = number
    (made,) = session(ir.to_proto(taken_over(layer.model()))).run(None, {"A": rows})
    assert not np.isfinite(made[-1]).any()
    assert np.isfinite(made[:-1]).all()


@needs_vnni
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-42, 1e30])
def test_extreme_rows(size: float) -> None:
    layer = Layer()
    signs = np.where(np.arange(layer.inner) % 3, 1.0, -1.0)
    rows = (np.full((2, layer.inner), size) * signs).astype(np.float32)
    (made,) = session(ir.to_proto(taken_over(layer.model()))).run(None, {"A": rows})
    np.testing.assert_allclose(made, layer.times(rows), rtol=1e-4, atol=1e-28)


@needs_vnni
@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("bits", 2, "bits is 2, expected 4 or 8"),
        ("block_size", 16, "block_size is 16"),
        ("K", 128, "A has width 96, expected 128"),
        ("N", 41, "B has 1920 elements, expected 1968"),
    ],
)
def test_what_the_kernel_has_not_is_refused(attribute: str, value: int, said: str) -> None:
    model = taken_over(Layer().model("rows"))
    (node,) = model.graph
    node.attributes[attribute] = ir.AttrInt64(attribute, value)
    runtime = session(ir.to_proto(model))
    with pytest.raises(Exception, match=said):
        runtime.run(None, {"A": np.ones((1, 96), np.float32)})


@needs_vnni
def test_g_idx_is_refused() -> None:
    model = taken_over(Layer().model())
    (node,) = model.graph
    order = ir.Value(name="order", shape=ir.Shape([96]), type=ir.TensorType(ir.DataType.INT32))
    order.const_value = ir.Tensor(np.zeros(96, np.int32), name="order")
    model.graph.register_initializer(order)
    node.resize_inputs(5)
    node.replace_input_with(4, order)
    with pytest.raises(Exception, match="g_idx is given, which is not supported"):
        session(ir.to_proto(model)).run(None, {"A": np.ones((1, 96), np.float32)})


@needs_vnni
def test_a_tier_below_does_not_register_it() -> None:
    layer = replace(Layer(), seed=3)
    rows = np.random.default_rng(0).standard_normal((2, layer.inner)).astype(np.float32)
    proto = ir.to_proto(taken_over(layer.model()))
    try:
        use_cpu_tier("avx2")
        assert not has_matmul_nbits()
        (made,) = session(proto).run(None, {"A": rows})
    finally:
        use_cpu_tier(None)
    plain = ort.InferenceSession(proto.SerializeToString(), None, ["CPUExecutionProvider"])
    np.testing.assert_array_equal(made, plain.run(None, {"A": rows})[0])
    (ours,) = session(proto).run(None, {"A": rows})
    assert np.abs(ours - layer.times(rounded(rows))).max() < 1e-5 * layer.times(rows).std()
