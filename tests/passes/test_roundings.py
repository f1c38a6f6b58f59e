"""Quantization of activations that is taken out of a graph, and put back where nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.passes.check_roundings import CheckRoundings
from mla_opt.passes.find_latent_attention import FindLatentAttention
from mla_opt.passes.put_back_roundings import PutBackRoundings
from mla_opt.passes.take_out_roundings import TakeOutRoundings
from tests.graphs.latent_block import Block, build, feeds
from tests.quantization.activations import FORMATS, dynamic, static

BLOCK = Block()
ROUNDS = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger"}


def quantized(folder: Path, how: str) -> onnx.ModelProto:
    if how == "dynamic":
        return dynamic(build(BLOCK), folder)
    return static(build(BLOCK), BLOCK, folder, **FORMATS[how])


def outputs(model: onnx.ModelProto) -> dict[str, Any]:
    """Without any of ONNX Runtime's own rewriting."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds(BLOCK))))


@pytest.mark.parametrize("how", ["dynamic", *FORMATS])
def test_put_back_at_once_it_is_the_same_to_the_last_bit(tmp_path: Path, how: str) -> None:
    model = quantized(tmp_path, how)
    graph = OnnxGraph(ir.from_proto(model))
    taken = TakeOutRoundings().run(graph)
    assert taken.rewritten > 2
    assert not ROUNDS & {node.op_type for node in graph.model.graph}
    back = PutBackRoundings().run(graph)
    assert back.rewritten == back.matched == taken.matched
    kinds = [sorted(n.op_type for n in each.graph) for each in (ir.from_proto(model), graph.model)]
    assert kinds[0] == kinds[1]
    again = outputs(ir.to_proto(graph.model))
    for name, array in outputs(model).items():
        np.testing.assert_array_equal(again[name], array)


def test_without_roundings_nothing_is_touched() -> None:
    graph = OnnxGraph(ir.from_proto(build(BLOCK)))
    before = graph.text()
    for step in (TakeOutRoundings(), CheckRoundings(), PutBackRoundings()):
        assert step.run(graph).rewritten == 0
    assert graph.text() == before


@pytest.mark.parametrize("keep", [False, True])
def test_an_attention_that_loses_roundings_is_told_or_refused(tmp_path: Path, keep: bool) -> None:
    graph = OnnxGraph(ir.from_proto(quantized(tmp_path, "dynamic")))
    TakeOutRoundings().run(graph)
    FindLatentAttention().run(graph)
    assert len(graph.sites) == 1
    result = CheckRoundings(keep=keep).run(graph)
    assert [each.code for each in result.refusals] == ["activations_quantized"] * keep
    assert len(result.warnings) == (not keep)
    assert len(graph.sites) == (not keep)
