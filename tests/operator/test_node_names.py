"""Several signatures in one model: each body has a name of its own, and the kernel has them all."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_opt
from mla_opt.operator import DOMAIN, OP_TYPE, latent_attention
from mla_opt.operator.contract import OP_TYPES
from mla_opt.operator.onnx.node import define, settle
from tests.operator.cases import (
    ALL_SIGNATURES,
    RANK,
    SCALE,
    Feeds,
    Signature,
    difference,
    operands,
    symbolic,
)

GROWING = [each for each in ALL_SIGNATURES if not each.in_place]


def model(signatures: list[Signature], opset: int = 18) -> tuple[ir.Model, list[Feeds]]:
    """One node for each signature, with operands of its own, before the names are settled."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="graph")
    made = ir.Model(graph, ir_version=8)
    feeds = [operands(each, seed=place) for place, each in enumerate(signatures)]
    for place, (signature, given) in enumerate(zip(signatures, feeds)):
        kinds = {key: ir.DataType.from_numpy(feed.dtype) for key, feed in given.items()}
        inputs = {key: symbolic(key, feed, kinds[key]) for key, feed in given.items()}
        for key, value in inputs.items():
            value.name = f"{key}.{place}"
        outputs = [ir.Value(name=f"{key}.{place}") for key in signature.outputs]
        for value in outputs:
            value.dtype = ir.DataType.FLOAT
        node = ir.Node(
            DOMAIN,
            OP_TYPE,
            signature.arrange(inputs),
            ir.convenience.convert_attributes(signature.node_attributes(SCALE, RANK)),
            overload=define(made, signature, ir.DataType.FLOAT),
            outputs=outputs,
        )
        graph.append(node)
        graph.inputs.extend(inputs.values())
        graph.outputs.extend(outputs)
    return made, feeds


def run(made: ir.Model, feeds: list[Feeds], *, kernel: bool, kept: Path | None = None) -> Feeds:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if kernel:
        options.register_custom_ops_library(str(mla_opt.kernel_library()))
    if kept is not None:
        options.optimized_model_filepath = str(kept)
    session = ort.InferenceSession(ir.to_proto(made).SerializeToString(), options)
    named = {f"{key}.{at}": feed for at, given in enumerate(feeds) for key, feed in given.items()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, named), strict=True))


def names_of(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph if node.domain == DOMAIN]


def check(got: Feeds, signatures: list[Signature], feeds: list[Feeds]) -> None:
    for place, (signature, given) in enumerate(zip(signatures, feeds)):
        options = {"scale": SCALE, "kv_lora_rank": RANK, "causal": signature.causal}
        wanted = latent_attention(**given, **options)
        for key in signature.outputs:
            error = difference(got[f"{key}.{place}"], getattr(wanted, key))
            assert error <= 2e-6, (signature.overload, key)


@pytest.mark.parametrize("kernel", [False, True])
def test_every_name_runs_by_its_own_body_and_by_the_kernel(kernel, tmp_path):
    signatures = GROWING[:: len(GROWING) // 8][:8]
    made, feeds = model(signatures)
    settle(made)
    assert names_of(made) == list(OP_TYPES)
    kept = tmp_path / "kept.onnx"
    check(run(made, feeds, kernel=kernel, kept=kept), signatures, feeds)
    assert names_of(ir.load(kept)) == (list(OP_TYPES) if kernel else [])


def test_the_most_frequent_signature_has_the_first_name():
    made, _ = model([GROWING[0], GROWING[1], GROWING[1]])
    settle(made)
    assert names_of(made) == ["LatentAttention_2", "LatentAttention", "LatentAttention"]
    assert {node.overload for node in made.graph} == {""}
    assert set(made.functions) == {(DOMAIN, each, "") for each in OP_TYPES[:2]}
    before = names_of(made)
    settle(made)
    assert names_of(made) == before


def test_a_body_that_nothing_calls_takes_no_name():
    made, _ = model([GROWING[0], GROWING[1]])
    made.graph.remove(made.graph[0])
    settle(made)
    assert names_of(made) == ["LatentAttention"]
    assert set(made.functions) == {(DOMAIN, OP_TYPE, "")}


def test_more_bodies_than_names_are_put_in_the_place_of_their_calls():
    signatures = [*GROWING[:9], GROWING[8]]
    made, feeds = model(signatures)
    settle(made)
    called = names_of(made)
    assert set(called) == set(OP_TYPES)
    assert len(called) == 9
    assert len(made.functions) == 8
    check(run(made, feeds, kernel=True), signatures, feeds)


def test_a_body_that_knows_one_type_serves_no_other():
    """Opset 14 has no CastLike: its bodies hold the type of their query."""
    made = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 14}), ir_version=8)
    overloads = {
        define(made, Signature(causal=True), kind)
        for kind in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    }
    assert len(overloads) == len(made.functions) == 2
