"""Which attentions lose quantization of activations is told, or refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.passes.check_roundings import CheckRoundings
from mla_opt.passes.find_latent_attention import FindLatentAttention
from mla_opt.passes.take_out_roundings import TakeOutRoundings
from tests.graphs.latent_block import Block, build
from tests.quantization.activations import quantized

BLOCK = Block()


@pytest.mark.parametrize("keep", [False, True])
def test_an_attention_that_loses_roundings_is_told_or_refused(tmp_path: Path, keep: bool) -> None:
    graph = OnnxGraph(ir.from_proto(quantized(BLOCK, tmp_path, "dynamic")))
    TakeOutRoundings().run(graph)
    FindLatentAttention().run(graph)
    assert len(graph.sites) == 1
    result = CheckRoundings(keep=keep).run(graph)
    assert [each.code for each in result.refusals] == ["activations_quantized"] * keep
    assert len(result.warnings) == (not keep)
    assert len(graph.sites) == (not keep)


@pytest.mark.parametrize("keep", [False, True])
def test_without_roundings_there_is_nothing_to_tell(keep: bool) -> None:
    graph = OnnxGraph(ir.from_proto(build(BLOCK)))
    FindLatentAttention().run(graph)
    result = CheckRoundings(keep=keep).run(graph)
    assert not result.refusals
    assert not result.warnings
    assert len(graph.sites) == 1
