"""What is written in another way to be read is as it was where it is not latent attention."""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.axes.plan import Plan, settled
from tests.axes.styles import PUBLISHED
from tests.axes.writer import build
from tests.passes.harness import EXTRACT, FIND, lines, run

SUMMED = Plan(key="two_products")
OTHERS = {
    "a sum of products": Plan(key="two_products", mutations=("last_key t rolled 0",)),
    "an attention with its own cache": replace(
        PUBLISHED["mobius"], mutations=("value t rolled 0",)
    ),
}


def graph_of(plan: Plan) -> OnnxGraph:
    return OnnxGraph(ir.from_proto(build(settled(plan))))


@pytest.mark.parametrize("plan", OTHERS.values(), ids=OTHERS)
def test_what_is_refused_is_left_as_it_was(plan: Plan) -> None:
    graph = graph_of(plan)
    before, own = lines(graph.model), {graph.label(node) for node in graph.nodes()}
    (found,) = run(graph, *FIND)
    assert lines(graph.model) == before
    assert graph.drafts == []
    (refusal,) = found.refusals
    assert refusal.nodes
    assert own.issuperset(refusal.nodes)


def test_what_is_not_proved_is_left_as_it_was() -> None:
    graph = graph_of(SUMMED)
    before = lines(graph.model)
    run(graph, *FIND)
    assert len(graph.sites) == len(graph.drafts) == 1
    core = graph.sites[0].core
    graph.sites[0].core = replace(core, scale=2 * core.scale)
    (result,) = run(graph, "extract_weights")
    assert [refusal.code for refusal in result.refusals] == ["certificate_failed"]
    assert lines(graph.model) == before


def test_what_is_matched_is_one_product() -> None:
    graph = graph_of(SUMMED)
    products = [node for node in graph.nodes() if node.op_type == "MatMul"]
    run(graph, *EXTRACT)
    assert graph.drafts == []
    kept = [node for node in graph.nodes() if node.op_type == "MatMul"]
    assert len(kept) == len(products) - 1
    onnx.checker.check_model(ir.to_proto(graph.model))
