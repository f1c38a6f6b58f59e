"""Both emitted forms against the definition of the operator, whatever the operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.emission.attend import attend
from mla_opt.emission.rows import Rows
from mla_opt.graphs.onnx.builder import OnnxBuilder
from tests.passes.harness import compute

B, H, S, T, D, V = 2, 3, 4, 7, 8, 5


def attention(
    *, bias: Any = None, sink: Any = None, causal: bool = False, dtype: str = "float32"
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What `attend` computes, and what it should."""
    rng = np.random.default_rng(0)
    arrays = {
        "query": rng.standard_normal((B, H, S, D)).astype(dtype),
        "keys": rng.standard_normal((B, H, D, T)).astype(dtype),
        "values": rng.standard_normal((B, H, T, V)).astype(dtype),
    }
    optional = {"bias": bias, "sink": sink}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    values = {name: _value(name, array) for name, array in arrays.items()}
    graph = ir.Graph(list(values.values()), [], nodes=[], opset_imports={"": 18}, name="graph")
    model = ir.Model(graph, ir_version=10)
    builder = OnnxBuilder(model, None, "test", set(values))
    made = attend(
        builder,
        values["query"],
        values["keys"],
        values["values"],
        scale=0.3,
        bias=values.get("bias"),
        sink=values.get("sink"),
        causal=causal,
    )
    made.name, made.shape = "made", ir.Shape([B, H, S, V])
    graph.extend(builder.emitted)
    graph.outputs.append(made)
    return compute(model, arrays)["made"], _expected(arrays, causal)


def _value(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=kind)


def _expected(arrays: dict[str, Any], causal: bool) -> np.ndarray[Any, Any]:
    scores = 0.3 * arrays["query"].astype(np.float64) @ arrays["keys"].astype(np.float64)
    bias = arrays.get("bias")
    if bias is not None:
        added = np.where(bias, 0.0, -np.inf) if bias.dtype == np.bool_ else bias
        scores = scores + added
    if causal:
        scores = np.where(np.arange(T) <= np.arange(S)[:, None] + T - S, scores, -np.inf)
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    if "sink" in arrays:
        total = total + np.exp(arrays["sink"].astype(np.float64)).reshape(H, 1, 1)
    return weights / np.where(total == 0, 1, total) @ arrays["values"].astype(np.float64)


RNG = np.random.default_rng(7)
ALLOWED = RNG.random((B, 1, S, T)) < 0.6
ALLOWED[1, 0, 2] = False
ADDED = RNG.standard_normal((B, 1, S, T)).astype(np.float32)
SINK = RNG.standard_normal(H).astype(np.float32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sink", [None, SINK], ids=["", "sink"])
@pytest.mark.parametrize(
    "bias",
    [
        None,
        ADDED,
        ALLOWED,
        np.where(ALLOWED, ADDED, np.float32(-np.inf)),
        ADDED[0, 0],
        RNG.standard_normal((1, H, S, T)).astype(np.float32),
        ADDED[..., :1],
    ],
    ids=["no bias", "added", "allowed", "both", "rank 2", "by head", "one column"],
)
def test_attend(bias, sink, causal):
    made, expected = attention(bias=bias, sink=sink, causal=causal)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_query_that_may_attend_to_nothing_gives_zeros():
    made, _ = attention(bias=ALLOWED)
    assert not made[1, :, 2].any()
    assert np.isfinite(made).all()


def test_half_precision_stays_half_precision():
    made, expected = attention(bias=ALLOWED, sink=SINK.astype(np.float16), dtype="float16")
    assert made.dtype == np.float16
    np.testing.assert_allclose(made, expected, atol=1e-2)


# Rows


class Recorder:
    def concat(self, parts: Any, axis: int, name: str) -> tuple[Any, ...]:
        return ("concat", *parts, axis)


@pytest.mark.parametrize(
    ("rows", "operands"),
    [
        (Rows(new=("c", "k")), {"latent": ("concat", "c", "k", 3)}),
        (Rows(new=("c",)), {"latent": "c"}),
        (Rows(new=("ck",), past=("p",)), {"latent": "ck", "cache": "p"}),
        (
            Rows(new=("c", "k"), past=("p", "r")),
            {"latent": ("concat", "c", "k", 3), "cache": "p", "rope_cache": "r"},
        ),
        (Rows(new=(), past=("p", "r")), {"cache": "p", "rope_cache": "r"}),
        (
            Rows(new=("ck",), past=("p",), past_len="n"),
            {"latent": "ck", "cache": "p", "past_len": "n"},
        ),
    ],
)
def test_where_the_operator_finds_its_rows(rows, operands):
    assert rows.fused_operands(Recorder()) == operands
