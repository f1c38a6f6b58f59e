"""``PrefillCrossover`` in ONNX Runtime: what the library says, and what its function body says."""

from __future__ import annotations

from math import ceil

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.geometry import MlaGeometry
from mla_opt.operator import DOMAIN, VERSION
from mla_opt.operator.crossover import CROSSOVER_OP_TYPE, crossover_attributes, define_crossover
from mla_opt.passes.compress_cache import CompressCache
from tests.graphs.latent_block import Block, feeds
from tests.kernels.host import session
from tests.passes.harness import check, prepared, run

DEEPSEEK = MlaGeometry(
    num_heads=16, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512
)
GLM = MlaGeometry(
    num_heads=20, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256, kv_lora_rank=512
)
NEVER = 2**31 - 1
#: How many times ONNX Runtime's float32 products, as crossover.cpp has it.
ADVANTAGE = {"amx": 2.2, "avx512bf16": 1.3, "avx512": 1.3}


def model(geometry=DEEPSEEK, *, counted=1, rows=ir.DataType.FLOAT, opset=18, **changes):
    """A model that returns what the operator does, and the lesser of that and a size.

    What was counted is such that nobody who computes it says the same.
    """
    attributes = crossover_attributes(geometry, counted, rows) | changes
    size = ir.Value(name="size", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    node = ir.node(CROSSOVER_OP_TYPE, [], attributes=attributes, domain=DOMAIN)
    node.outputs[0].name, node.outputs[0].dtype = "limit", ir.DataType.INT64
    limited = ir.node("Min", [size, node.outputs[0]])
    limited.outputs[0].name, limited.outputs[0].dtype = "limited", ir.DataType.INT64
    graph = ir.Graph(
        [size],
        [node.outputs[0], limited.outputs[0]],
        nodes=[node, limited],
        opset_imports={"": opset, DOMAIN: VERSION},
        name="crossover",
    )
    made = ir.Model(graph, ir_version=10)
    define_crossover(made)
    return ir.to_proto(made)


def said(runtime):
    limit, limited = runtime.run(None, {"size": np.array([180], np.int64)})
    assert limited.tolist() == [min(180, limit[0])]
    assert limit.shape == (1,)
    return int(limit[0])


def by_formula(geometry, advantage):
    c, n, r, v = (
        geometry.kv_lora_rank,
        geometry.qk_nope_head_dim,
        geometry.qk_rope_head_dim,
        geometry.v_head_dim,
    )
    excess = (2 * c + r) / advantage - (n + r + v)
    return ceil(c * (n + v) / excess) if excess > 0 else NEVER


@pytest.mark.parametrize("opset", [14, 18, 25])
def test_the_body_says_what_was_counted(opset):
    proto = model(counted=171, opset=opset)
    assert said(ort.InferenceSession(proto.SerializeToString())) == 171


@pytest.mark.parametrize("geometry", [DEEPSEEK, GLM])
def test_the_library_says_where_both_forms_take_as_long(tier, geometry):
    advantage = ADVANTAGE.get(tier, 1.0)
    expected = by_formula(geometry, advantage)
    assert said(session(model(geometry))) == expected
    if advantage == 1.0:
        assert expected == ceil(geometry.prefill_crossover)


def test_bfloat16_rows_on_tiles_are_never_expanded(tier):
    expected = NEVER if tier == "amx" else ceil(DEEPSEEK.prefill_crossover)
    assert said(session(model(rows=ir.DataType.BFLOAT16))) == expected


def test_without_bound_where_absorbing_takes_fewer_operations(tier):
    wide = MlaGeometry(
        num_heads=2, qk_nope_head_dim=128, qk_rope_head_dim=0, v_head_dim=128, kv_lora_rank=64
    )
    assert said(session(model(wide))) == NEVER


@pytest.mark.parametrize(
    ("name", "value"), [("kv_lora_rank", 0), ("qk_nope_head_dim", -1), ("v_head_dim", -(2**62))]
)
def test_impossible_dimensions_are_refused(name, value):
    with pytest.raises(Exception, match="PrefillCrossover: a dimension is negative"):
        session(model(**{name: value}))


def test_an_optimized_model_goes_by_it(tier):
    """The form is chosen by what the library says, at every number of new tokens."""
    block = Block()
    steps = (CompressCache("keep"), "absorb_weights", "release_shapes", "fuse_cache_append")
    graph = prepared(block, *steps, prefill="auto")
    run(graph, "add_prefill_branch")
    (site,) = graph.sites
    (node,) = [node for node in graph.model.graph if node.op_type == "If"]
    node.inputs[0].shape, node.inputs[0].name = ir.Shape([1]), "is_prefill"
    graph.model.graph.outputs.append(node.inputs[0])
    runtime = session(check(graph.model))
    limit = by_formula(site.geometry, ADVANTAGE.get(tier, 1.0))
    total = 200
    last = limit * total // (total + limit)
    for query in (1, last, last + 1, total - 1):
        (chosen,) = runtime.run(["is_prefill"], feeds(block, 1, query, total - query))
        assert chosen.tolist() == [query > last]
