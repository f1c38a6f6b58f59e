"""Caches as transformers' own exporter has them: containers among arguments and results."""

from __future__ import annotations

import copy

import pytest
import torch

import mla_opt
from tests.exports.exporters import hf_components
from tests.exports.spec import ExportSpec


@pytest.mark.parametrize("component", ["decode"])
def test_a_dynamic_cache_goes_in_and_comes_out(component):
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    module, inputs = hf_components(ExportSpec("deepseek_v3", exporter="hf"))[component]
    program, _ = DynamoExporter().export_program(module, inputs, DynamoConfig(dynamic=True))
    result = mla_opt.optimize(program)
    assert result.report.verification["passed"]
    with torch.no_grad():
        expected = program.module()(**copy.deepcopy(inputs))
        seen = result.model.module()(**copy.deepcopy(inputs))
    assert type(seen) is type(expected)
    assert torch.allclose(seen.logits, expected.logits, atol=1e-4)
    caches = (seen.past_key_values, expected.past_key_values)
    mine, theirs = ([layer.keys for layer in cache.layers] for cache in caches)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, theirs, strict=True))
