"""Every legal signature, random operands for it, and ONNX Runtime to run its body."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.operator import DOMAIN, OP_TYPE, VERSION, Signature, function_body
from mla_opt.operator.onnx.body_style import TENSORRT, BodyStyle
from mla_opt.operator.quantized_rows import quantize
from mla_opt.ort_values import from_ort_value, to_ort_value

BATCH, HEADS, RANK, ROPE, PAST = 3, 2, 6, 4, 5
SCALE = 0.25

Feeds = dict[str, np.ndarray]


def _legal(*fields: Any) -> list[Signature]:
    try:
        return [Signature(*fields)]
    except InputError:
        return []


_FLAG = (False, True)
ALL_SIGNATURES = [
    signature
    for fields in itertools.product(
        _FLAG, _FLAG, _FLAG, _FLAG, ("none", "additive", "boolean"), _FLAG, _FLAG
    )
    for signature in _legal(*fields)
]

# One signature for each body part that depends on the opset version.
REDUCED_SIGNATURES = [
    Signature(causal=True, sink=True),
    Signature(has_cache=True, bias="additive"),
    Signature(has_cache=True, split=True, bias="boolean", causal=True),
    Signature(has_cache=True, in_place=True),
    Signature(has_cache=True, in_place=True, split=True, bias="additive", sink=True, causal=True),
    Signature(has_latent=False, has_cache=True, in_place=True, bias="boolean"),
]

# A float32 query on a cache of 16 bits.
NARROW_SIGNATURES = [
    Signature(has_cache=True, narrow=True, causal=True),
    Signature(has_cache=True, split=True, narrow=True, bias="additive"),
    Signature(has_cache=True, in_place=True, narrow=True, sink=True, causal=True),
    Signature(has_cache=True, in_place=True, split=True, narrow=True, bias="boolean"),
    Signature(has_latent=False, has_cache=True, narrow=True),
]

# Caches that hold the halves of rows.
EVEN_SIGNATURES = [
    Signature(has_cache=True, split=True, even=True, **fields)
    for fields in (
        {"causal": True, "sink": True},
        {"bias": "additive"},
        {"in_place": True, "bias": "boolean", "causal": True},
        {"has_latent": False},
        {"has_latent": False, "in_place": True, "bias": "additive"},
        {"narrow": True, "causal": True},
    )
]

# A float32 query on a cache of codes.
QUANTIZED_SIGNATURES = [
    Signature(has_cache=True, split=True, codes=codes, **fields)
    for codes in ("int8", "float8_e4m3fn")
    for fields in (
        {"causal": True},
        {"in_place": True, "bias": "boolean", "sink": True},
        {"has_latent": False, "bias": "additive"},
        {"has_latent": False, "in_place": True},
    )
]


def name(signature: Signature) -> str:
    return signature.overload


def operands(
    signature: Signature,
    *,
    query_len: int = 5,
    past: int = PAST,
    rope: int = ROPE,
    dtype: Any = np.float32,
    cache_dtype: Any = None,
    seed: int = 0,
    rank: int = RANK,
) -> Feeds:
    """Random operands; in place, the sequences are 0, past // 2 and past rows long.

    The caches have ``cache_dtype``; without it float16 if the signature is narrow, else ``dtype``.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    if signature.codes != "none":
        plain = replace(signature, codes="none")
        feeds = operands(plain, query_len=query_len, past=past, rope=rope, seed=seed, rank=rank)
        return with_codes(feeds, signature.codes, rank)
    kept = cache_dtype or (np.float16 if signature.narrow else dtype)
    new = query_len if signature.has_latent else 0
    rows = past + new if signature.in_place else past
    total = rows if signature.in_place else new + (past if signature.has_cache else 0)
    first = (rank + rope) // 2 if signature.even else rank if signature.split else rank + rope
    feeds = {
        "query": normal(BATCH, HEADS, query_len, rank + rope),
        "latent": normal(BATCH, 1, query_len, rank + rope),
        "cache": normal(BATCH, 1, rows, first).astype(kept),
        "past_len": np.array([0, past // 2, past], np.int32),
        "bias": _bias(signature, random, (BATCH, 1, query_len, total), dtype),
        "sink": normal(HEADS),
        "rope_cache": normal(BATCH, 1, rows, rank + rope - first).astype(kept),
    }
    return {key: feeds[key] for key in signature.inputs}


def with_codes(feeds: Feeds, codes: str, rank: int) -> Feeds:
    """The same with the rows of the caches quantized; those behind a sequence's last as well."""
    rows = np.concatenate([feeds["cache"], feeds["rope_cache"]], axis=-1)
    cache, beside = quantize(rows, rank, codes)
    return {**feeds, "cache": cache, "rope_cache": beside}


def _bias(
    signature: Signature, random: np.random.Generator, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """A third of the columns forbidden, and the first row of the last sequence blind."""
    allowed = random.random(shape) > 1 / 3
    allowed[-1, :, 0] = False
    if signature.bias == "boolean":
        return allowed
    return np.where(allowed, random.standard_normal(shape), -np.inf).astype(dtype)


def model(
    signature: Signature,
    feeds: Feeds,
    *,
    opset: int | None = None,
    scale: float = SCALE,
    rank: int = RANK,
    element_type: ir.DataType | None = None,
    style: BodyStyle = TENSORRT,
) -> onnx.ModelProto:
    """A model of one node whose definition is the body; every dimension is symbolic.

    In opset 18, or 19 where the cache is of 8-bit floats.
    """
    opset = opset or (19 if signature.codes == "float8_e4m3fn" else 18)
    element = element_type or ir.DataType.from_numpy(feeds["query"].dtype)
    body = function_body(signature, opset, signature.overload, element_type=element, style=style)
    kinds = {key: _kind(key, feed, element, signature) for key, feed in feeds.items()}
    inputs = {key: symbolic(key, feed, kinds[key]) for key, feed in feeds.items()}
    outputs = [
        _output(key, kinds.get(key.removeprefix("new_"), element)) for key in signature.outputs
    ]
    node = ir.Node(
        DOMAIN,
        OP_TYPE,
        signature.arrange(inputs),
        ir.convenience.convert_attributes(signature.node_attributes(scale, rank)),
        overload=signature.overload,
        outputs=outputs,
    )
    imports = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=[node], opset_imports=imports, name="graph"
    )
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10, functions=[body]))


def _kind(key: str, feed: np.ndarray, element: ir.DataType, signature: Signature) -> ir.DataType:
    """Floating-point operands have the model's element type, narrow caches one of their own."""
    own = ir.DataType.from_numpy(feed.dtype)
    is_kept = signature.narrow or signature.codes != "none"
    if is_kept and key in ("cache", "rope_cache"):
        return own
    return element if own.is_floating_point() else own


def symbolic(key: str, feed: np.ndarray, kind: ir.DataType) -> ir.Value:
    """An input of the rank of its feed."""
    shape = ir.Shape([f"{key}_{axis}" for axis in range(feed.ndim)])
    return ir.Value(name=key, type=ir.TensorType(kind), shape=shape)


def _output(key: str, element: ir.DataType) -> ir.Value:
    shape = ir.Shape([f"{key}_{axis}" for axis in range(4)])
    return ir.Value(name=key, type=ir.TensorType(element), shape=shape)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(proto: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    values = {name: to_ort_value(feed) for name, feed in feeds.items()}
    return [from_ort_value(value) for value in session(proto).run_with_ort_values(None, values)]


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected number; infinite where one is not finite."""
    assert actual.shape == expected.shape
    if not np.isfinite(actual.astype(np.float64)).all():
        return float("inf")
    gap = np.abs(actual.astype(np.float64) - expected).max(initial=0.0)
    return float(gap / max(np.abs(expected).max(initial=0.0), 1e-30))
