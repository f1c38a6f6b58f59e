"""Storages of ``kv_b``, random weights in them, and models of one ``MultiHeadLatentAttention``."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from mla_opt.geometry import MlaGeometry
from mla_opt.operator import DOMAIN, VERSION, Signature
from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, MultiHeadSignature
from mla_opt.operator.multi_head_reference import multi_head_latent_attention
from mla_opt.operator.onnx.body_style import TENSORRT, BodyStyle
from mla_opt.operator.onnx.multi_head_body import multi_head_function_body
from tests.operator import cases

SMALL = MlaGeometry(
    num_heads=cases.HEADS,
    qk_nope_head_dim=3,
    qk_rope_head_dim=cases.ROPE,
    v_head_dim=5,
    kv_lora_rank=cases.RANK,
)
V2_LITE = MlaGeometry(16, 128, 64, 128, 512)
SCALE = cases.SCALE
PLAIN = Storage()

#: A name, how it is stored, and the element types of ``kv_b`` and its scales.
SMALL_STORAGES: dict[str, tuple[Storage, Any, Any]] = {
    "float32": (PLAIN, np.float32, None),
    "float16": (PLAIN, np.float16, None),
    "bfloat16": (PLAIN, ml_dtypes.bfloat16, None),
    "int8_by_row": (Storage(block_size=6), np.int8, np.float32),
    "int8_by_block_zeros": (
        Storage(block_size=4, block_rows=3, zero_points="plain"),
        np.int8,
        np.float32,
    ),
    "uint8_by_matrix_zeros": (
        Storage(block_size=6, block_rows=16, zero_points="plain"),
        np.uint8,
        np.float16,
    ),
    "bfloat16_by_row": (Storage(block_size=6), ml_dtypes.bfloat16, np.float32),
    "fp8_blocks": (Storage(block_size=4, block_rows=4), ml_dtypes.float8_e4m3fn, np.float32),
    "fp8_e5m2": (Storage(block_size=6, block_rows=16), ml_dtypes.float8_e5m2, np.float32),
    "packed2": (Storage(bits=2, block_size=4), np.uint8, np.float32),
    "packed4": (Storage(bits=4, block_size=4), np.uint8, np.float32),
    "packed4_zeros": (Storage(bits=4, block_size=4, zero_points="packed"), np.uint8, np.float32),
    "packed4_float_zeros": (
        Storage(bits=4, block_size=4, zero_points="plain"),
        np.uint8,
        np.float32,
    ),
    "packed8_zeros": (Storage(bits=8, block_size=4, zero_points="packed"), np.uint8, np.float16),
}
REAL_STORAGES: dict[str, tuple[Storage, Any, Any]] = {
    "float32": (PLAIN, np.float32, None),
    "float16": (PLAIN, np.float16, None),
    "bfloat16": (PLAIN, ml_dtypes.bfloat16, None),
    "int8_by_row": (Storage(block_size=512), np.int8, np.float32),
    "fp8_128x128": (Storage(block_size=128, block_rows=128), ml_dtypes.float8_e4m3fn, np.float32),
    "packed2_32": (Storage(bits=2, block_size=32), np.uint8, np.float32),
    "packed4_16_zeros": (
        Storage(bits=4, block_size=16, zero_points="packed"),
        np.uint8,
        np.float32,
    ),
    "packed4_32": (Storage(bits=4, block_size=32), np.uint8, np.float32),
    "packed4_32_zeros": (
        Storage(bits=4, block_size=32, zero_points="packed"),
        np.uint8,
        np.float32,
    ),
    "packed4_128_float_zeros": (
        Storage(bits=4, block_size=128, zero_points="plain"),
        np.uint8,
        np.float16,
    ),
    "packed8_32_zeros": (
        Storage(bits=8, block_size=32, zero_points="packed"),
        np.uint8,
        np.float32,
    ),
}


def weights(
    storage: Storage, dtype: Any, scales_dtype: Any, geometry: MlaGeometry, seed: int = 0
) -> cases.Feeds:
    """Random ``kv_b`` and what goes with it; the numbers are of the size of 1 / sqrt(C)."""
    random = np.random.default_rng(seed)
    g = geometry
    rows, blocks = g.num_heads * (g.qk_nope_head_dim + g.v_head_dim), 0
    if storage.block_size:
        blocks = -(-g.kv_lora_rank // storage.block_size)
    shape = (rows, blocks, storage.block_size * storage.bits // 8)
    codes = random.integers(0, 256, shape) if storage.bits else _codes(random, dtype, rows, g)
    feeds = {"kv_b": codes.astype(dtype)}
    if not blocks:
        return feeds
    of_scales = (-(-rows // storage.block_rows), blocks)
    size = _spread_of(storage, dtype) * g.kv_lora_rank**0.5
    feeds["kv_b_scales"] = (random.uniform(0.5, 2.0, of_scales) / size).astype(scales_dtype)
    zeros = _zero_points(random, storage, of_scales, dtype, scales_dtype)
    return feeds if zeros is None else feeds | {"kv_b_zero_points": zeros}


def factors(geometry: MlaGeometry, seed: int = 9) -> cases.Feeds:
    """Random factors of columns, those of keys others than those of values."""
    random = np.random.default_rng(seed)
    shape = (2, geometry.kv_lora_rank)
    return {"kv_b_factors": random.uniform(0.5, 1.5, shape).astype(np.float32)}


def _codes(random: np.random.Generator, dtype: Any, rows: int, g: MlaGeometry) -> np.ndarray:
    shape = (rows, g.kv_lora_rank)
    if np.issubdtype(dtype, np.integer):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return random.integers(low, high + 1, shape)
    narrow = np.dtype(dtype).itemsize == 1
    return random.standard_normal(shape) * (30 if narrow else g.kv_lora_rank**-0.5)


def _spread_of(storage: Storage, dtype: Any) -> float:
    """About the root of the mean square of the codes."""
    if storage.bits:
        return 2.0**storage.bits / 3.5
    return 75.0 if np.issubdtype(dtype, np.integer) else 30.0


def _zero_points(
    random: np.random.Generator,
    storage: Storage,
    of_scales: tuple[int, int],
    dtype: Any,
    scales_dtype: Any,
) -> np.ndarray | None:
    rows, blocks = of_scales
    if storage.zero_points == "packed":
        return random.integers(0, 256, (rows, -(-blocks * storage.bits // 8))).astype(np.uint8)
    if storage.zero_points == "plain" and storage.bits:
        return random.uniform(0, 2**storage.bits - 1, of_scales).astype(scales_dtype)
    if storage.zero_points == "plain":
        low = np.iinfo(dtype).min
        return (low + random.integers(100, 150, of_scales)).astype(dtype)
    return None


def operands(
    signature: MultiHeadSignature, kv_b: cases.Feeds, geometry: MlaGeometry = SMALL, **options: Any
) -> cases.Feeds:
    """Operands of the attention with a query before absorption, and the weights."""
    feeds = cases.operands(signature.attention, rope=geometry.qk_rope_head_dim, **options)
    random = np.random.default_rng(7)
    batch, heads, query_len, _ = feeds["query"].shape
    shape = (batch, heads, query_len, geometry.qk_head_dim)
    feeds["query"] = random.standard_normal(shape).astype(feeds["query"].dtype)
    feeds |= kv_b
    return {name: feeds[name] for name in signature.inputs}


def model(
    signature: MultiHeadSignature,
    feeds: cases.Feeds,
    *,
    geometry: MlaGeometry = SMALL,
    opset: int = 18,
    scale: float = SCALE,
    style: BodyStyle = TENSORRT,
    constant: bool = False,
) -> onnx.ModelProto:
    """A model of one node whose definition is the body; with ``constant`` the weights are in it."""
    element = ir.DataType.from_numpy(feeds["query"].dtype)
    body = multi_head_function_body(
        signature, opset, signature.overload, element_type=element, style=style
    )
    stored = [name for name in feeds if constant and name.startswith("kv_b")]
    values = {
        name: cases.symbolic(name, feed, ir.DataType.from_numpy(feed.dtype))
        for name, feed in feeds.items()
    }
    for name in stored:
        values[name].const_value = ir.tensor(feeds[name], name=name)
        values[name].shape = ir.Shape(feeds[name].shape)
    outputs = [
        cases._output(name, values[name.removeprefix("new_")].dtype if "new" in name else element)
        for name in signature.outputs
    ]
    node = ir.Node(
        DOMAIN,
        MULTI_HEAD_OP_TYPE,
        signature.arrange(values),
        ir.convenience.convert_attributes(signature.node_attributes(scale, geometry)),
        overload=signature.overload,
        outputs=outputs,
    )
    graph = ir.Graph(
        [value for name, value in values.items() if name not in stored],
        outputs,
        nodes=[node],
        initializers=[values[name] for name in stored],
        opset_imports={"": opset, DOMAIN: VERSION},
        name="graph",
    )
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10, functions=[body]))


def expected(
    signature: MultiHeadSignature,
    feeds: cases.Feeds,
    *,
    geometry: MlaGeometry = SMALL,
    scale: float = SCALE,
) -> Any:
    """What the definition says."""
    return multi_head_latent_attention(
        **feeds,
        scale=scale,
        kv_lora_rank=geometry.kv_lora_rank,
        qk_nope_head_dim=geometry.qk_nope_head_dim,
        v_head_dim=geometry.v_head_dim,
        causal=signature.attention.causal,
        storage=signature.storage,
    )


def real_operands(
    storage: str,
    *,
    query_len: int,
    past: int,
    batch: int = 1,
    dtype: Any = np.float32,
    with_factors: bool = False,
) -> tuple[MultiHeadSignature, cases.Feeds]:
    """A causal node with a growing cache, at the dims of DeepSeek-V2-Lite."""
    signature = MultiHeadSignature(
        Signature(has_cache=True, causal=True), REAL_STORAGES[storage][0], factors=with_factors
    )
    random = np.random.default_rng(3)
    g = V2_LITE
    shapes = {
        "query": (batch, g.num_heads, query_len, g.qk_head_dim),
        "latent": (batch, 1, query_len, g.latent_width),
        "cache": (batch, 1, past, g.latent_width),
    }
    feeds = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    feeds |= weights(*REAL_STORAGES[storage], g) | factors(g)
    return signature, {name: feeds[name] for name in signature.inputs}
