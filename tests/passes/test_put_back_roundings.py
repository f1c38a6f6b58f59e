"""Quantization of activations is put back for all who are still there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.passes.put_back_roundings import PutBackRoundings
from mla_opt.passes.take_out_roundings import TakeOutRoundings
from tests.graphs.latent_block import Block, build, feeds
from tests.quantization.activations import FORMATS, quantized

BLOCK = Block()


def outputs(model: onnx.ModelProto) -> dict[str, Any]:
    """Without any of ONNX Runtime's own rewriting."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds(BLOCK))))


@pytest.mark.parametrize("how", ["dynamic", *FORMATS])
def test_put_back_at_once_it_is_the_same_to_the_last_bit(tmp_path: Path, how: str) -> None:
    model = quantized(BLOCK, tmp_path, how)
    graph = OnnxGraph(ir.from_proto(model))
    taken = TakeOutRoundings().run(graph)
    assert taken.rewritten > 2
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
    assert PutBackRoundings().run(graph).rewritten == 0
    assert graph.text() == before
