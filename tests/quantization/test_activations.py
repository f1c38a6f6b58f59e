"""Quantized activations: left out of attentions that are rewritten, kept elsewhere, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import NothingMatchedError
from tests.graphs.latent_block import Block, build
from tests.quantization.activations import FORMATS, dynamic, static
from tests.quantization.checks import check_verified

BLOCK = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, q_lora=32)
ROUNDS = ("QuantizeLinear", "DynamicQuantizeLinear")
DYNAMIC: dict[str, dict[str, Any]] = {
    "one scale a matrix": {},
    "a scale a column": {"per_channel": True},
    "scores and context too": {"extra_options": {"MatMulConstBOnly": False}},
}


def counted(model: onnx.ModelProto | ir.Model, *kinds: str) -> int:
    opened = model if isinstance(model, ir.Model) else ir.from_proto(model)
    nodes = ir.traversal.RecursiveGraphIterator(opened.graph)
    return sum(node.op_type in kinds for node in nodes)


def check(model: onnx.ModelProto) -> None:
    """It is rewritten and verified; the report says what it lost, and how far both drift."""
    before = counted(model, *ROUNDS)
    assert before > 2
    result = mla_opt.optimize(model, verify=False)
    assert 0 < counted(result.model, *ROUNDS) < before
    (site,) = result.report.sites
    assert any("quantized" in note for note in site.notes)
    report = check_verified(model)
    assert report.verification is not None
    (drift,) = [d for d in report.verification["drift"]["outputs"] if d["name"] == "hidden"]
    assert drift["original"] > 1e-3
    assert drift["optimized"] < 1.5 * drift["original"]


@pytest.mark.parametrize("how", DYNAMIC)
def test_dynamic(tmp_path: Path, how: str) -> None:
    check(dynamic(build(BLOCK), tmp_path, **DYNAMIC[how]))


@pytest.mark.parametrize("how", FORMATS)
def test_static(tmp_path: Path, how: str) -> None:
    check(static(build(BLOCK), BLOCK, tmp_path, **FORMATS[how]))


@pytest.mark.parametrize("cache", ["packed", "expanded", "none"])
def test_caches(tmp_path: Path, cache: Any) -> None:
    block = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, cache=cache)
    check(static(build(block), block, tmp_path))


def test_it_is_refused_where_that_is_asked_for(tmp_path: Path) -> None:
    model = dynamic(build(BLOCK), tmp_path)
    with pytest.raises(NothingMatchedError, match="activations_quantized") as caught:
        mla_opt.optimize(model, keep_activation_quantization=True)
    report = caught.value.report
    assert report is not None
    (refusal,) = report.refusals
    assert refusal.code == "activations_quantized"
    assert refusal.nodes
    result = mla_opt.optimize(model, keep_activation_quantization=True, allow_unmatched=True)
    assert ir.to_proto(result.model).graph.node == model.graph.node
    plain = mla_opt.optimize(build(BLOCK), keep_activation_quantization=True, verify=False)
    assert len(plain.report.sites) == 1


def test_an_attention_on_integers_is_refused(tmp_path: Path) -> None:
    """What ``quantize_dynamic`` makes of ONNX's own Attention; ONNX Runtime rejects the model."""
    block = Block(core="fused", bias=None, opset=23)
    model = dynamic(build(block), tmp_path)
    assert counted(model, "QAttention") == 1
    with pytest.raises(NothingMatchedError, match="activations_quantized") as caught:
        mla_opt.optimize(model)
    assert caught.value.report is not None
    (refusal,) = caught.value.report.refusals
    assert "Attention" in refusal.remedy


def test_inspection_sees_through_roundings(tmp_path: Path) -> None:
    (attention,) = mla_opt.find(static(build(BLOCK), BLOCK, tmp_path))
    assert attention.matched
