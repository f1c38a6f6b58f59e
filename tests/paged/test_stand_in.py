"""One node of PagedAttention: the stand-in in ONNX Runtime, and the definition in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.operator.paged_attention import CALL, DOMAIN, INPUTS, OP_TYPE, PagedSignature
from mla_opt.ort_values import from_ort_value, to_ort_value
from mla_opt.verification.onnx.paged.stand_in import with_stand_in
from tests.paged.evaluator import evaluate

HEADS, RANK, WIDTH, SIZE, BLOCKS = 3, 24, 32, 16, 6
TYPES = {
    "float16": (np.float16, np.float16),
    "bfloat16": (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
    "int8": (np.float16, np.int8),
    "fp8": (np.float16, ml_dtypes.float8_e4m3fn),
}


def operands(kind: str) -> dict[str, np.ndarray]:
    """Four sequences: a chunk over two blocks, none, one whose past has lost a block, a step."""
    around, kept = TYPES[kind]
    rng = np.random.default_rng(0)
    tokens = 9
    cache = rng.standard_normal((BLOCKS, SIZE, 1, WIDTH)) * (40 if kept == np.int8 else 1)
    slots = [5 * SIZE + 14, 5 * SIZE + 15, 2 * SIZE, 2 * SIZE + 1, 2 * SIZE + 2, 4 * SIZE, -1, -1,
             3 * SIZE + 7]  # fmt: skip
    given = {
        "query": rng.standard_normal((tokens, HEADS * WIDTH)).astype(around),
        "key": (2 * rng.standard_normal((tokens, WIDTH))).astype(around),
        "key_cache": cache.astype(kept),
        "cumulative_sequence_length": np.asarray([0, 5, 5, 8, 9]),
        "past_seqlens": np.asarray([14, 3, 16, 7]),
        # a block that does not exist counts as none, as one that is not mapped
        "block_table": np.asarray([[5, 2], [0, -1], [BLOCKS, 4], [3, -1]]),
        "slot_mapping": np.asarray(slots),
    }
    if kind in ("int8", "fp8"):
        scale = rng.uniform(0.005, 0.05, (1, 1, WIDTH)).astype(np.float32)
        scale[..., 3] = 0  # a number of the rows that is not kept
        given["k_scale"] = scale
    return {name: v.astype(np.int32) if name in CALL else v for name, v in given.items()}


def model(given: dict[str, np.ndarray]) -> ir.Model:
    values = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        for name, array in given.items()
    }
    signature = PagedSignature(HEADS, RANK, 0.31, "k_scale" in given)
    outputs = [ir.Value(name="output", type=values["query"].type)]
    outputs.append(ir.Value(name="key_cache_out", type=values["key_cache"].type))
    node = ir.node(
        OP_TYPE,
        signature.arrange(values),
        signature.attributes(),
        domain=DOMAIN,
        outputs=outputs,
        name="node",
    )
    opsets = {"": 21, DOMAIN: 1}
    graph = ir.Graph(list(values.values()), outputs, nodes=[node], opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


def in_runtime(graph: ir.Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    proto = ir.to_proto(with_stand_in(graph)).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feeds = {name: to_ort_value(array) for name, array in given.items()}
    return dict(zip(names, map(from_ort_value, session.run_with_ort_values(names, feeds))))


@pytest.mark.parametrize("kind", TYPES)
def test_it_is_the_definition(kind: str) -> None:
    given = operands(kind)
    node = model(given)
    defined, seen = evaluate(node, given), in_runtime(node, given)
    kept, before = defined["key_cache_out"], given["key_cache"]
    assert kept.tobytes() == seen["key_cache_out"].tobytes()
    assert kept.tobytes() != before.tobytes()
    wanted = defined["output"].astype(np.float64)
    step = 2.0**-8 if kind == "bfloat16" else 2.0**-10  # a last bit
    np.testing.assert_allclose(seen["output"].astype(np.float64), wanted, rtol=step, atol=1e-4)
    assert np.abs(wanted).max() > 0.1


def test_a_token_that_sees_nothing_has_zeros() -> None:
    given = operands("float16")
    given["block_table"] = np.full((4, 2), -1, np.int32)
    seen = in_runtime(model(given), given)
    assert not seen["output"].any()


def test_the_slots_of_operands() -> None:
    """They are where the operator has them, and nothing else is given."""
    signature = PagedSignature(1, 8, 1.0, quantized=True)
    given = signature.arrange({n: n for n in ("query", "key", "key_cache", *CALL, "k_scale")})
    assert [name for name in given if name is not None] == [
        name for name, value in zip(INPUTS, given, strict=True) if value is not None
    ]
