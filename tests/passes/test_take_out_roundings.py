"""What quantizers round is read as it is before."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.passes.take_out_roundings import TakeOutRoundings
from tests.graphs.latent_block import Block, build
from tests.quantization.activations import FORMATS, quantized

BLOCK = Block()
ROUNDS = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger"}


@pytest.mark.parametrize("how", ["dynamic", *FORMATS])
def test_nothing_rounds_any_more(tmp_path: Path, how: str) -> None:
    graph = OnnxGraph(ir.from_proto(quantized(BLOCK, tmp_path, how)))
    names = [output.name for output in graph.model.graph.outputs]
    assert ROUNDS & {node.op_type for node in graph.nodes()}
    assert TakeOutRoundings().run(graph).rewritten > 2
    assert not ROUNDS & {node.op_type for node in graph.nodes()}
    assert [output.name for output in graph.model.graph.outputs] == names
    assert sum(node.op_type == "MatMul" for node in graph.nodes()) >= 5


def test_without_roundings_nothing_is_touched() -> None:
    graph = OnnxGraph(ir.from_proto(build(BLOCK)))
    before = graph.text()
    assert TakeOutRoundings().run(graph).rewritten == 0
    assert graph.text() == before
