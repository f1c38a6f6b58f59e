"""Caches of fixed capacity, written by index: transformers' `StaticCache`, and buffers."""

from __future__ import annotations

import copy

import pytest
import torch

import mla_opt
from tests.exports.families import FAMILIES
from tests.programs import exporting

CAPACITY = 24
PARTS = ("keys", "values", "cumulative_length")


class Decoder(torch.nn.Module):
    """A causal LM that keeps a `StaticCache` itself, as buffers."""

    def __init__(self, model, batch):
        super().__init__()
        self.model, self.cache = model, filled_cache(model, batch, tokens=0)
        for index, layer in enumerate(self.cache.layers):
            for part in PARTS:
                self.register_buffer(f"cache_{index}_{part}", getattr(layer, part))

    def forward(self, input_ids):
        for index, layer in enumerate(self.cache.layers):
            for part in PARTS:
                setattr(layer, part, getattr(self, f"cache_{index}_{part}"))
        return self.model(input_ids=input_ids, past_key_values=self.cache).logits


def filled_cache(model, batch, tokens):
    """A cache whose tensors exist, with that many tokens in it."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=CAPACITY)
    with torch.no_grad():
        model(input_ids=torch.arange(4 * batch).reshape(batch, 4), past_key_values=cache)
    for layer in cache.layers:
        if not tokens:
            layer.keys.zero_()
            layer.values.zero_()
        layer.cumulative_length.fill_(min(tokens, 4))
    return cache


def model(family="deepseek_v3", attention="sdpa"):
    return FAMILIES[family].build(attention)


def check_steps(program, optimized, inputs, steps=3):
    """The same over a few steps, each on a cache of its own that it changes."""
    wanted, found = (said(each, copy.deepcopy(inputs), steps) for each in (program, optimized))
    assert exporting.error(found[0], wanted[0]) < 5e-5
    if len(wanted) > 1:
        check_caches(found[1], wanted[1])


def said(program, inputs, steps):
    """The logits of each step, and the cache that was given, if it was.

    Buffers are as before afterwards: programs made of one another share them.
    """
    module, first, logits = program.module(), inputs["input_ids"], []
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for step in range(steps):
        inputs["input_ids"] = (first + 7 * step) % 97
        with torch.no_grad():
            produced = module(**inputs)
        logits.append(produced if torch.is_tensor(produced) else produced.logits)
    for name, buffer in module.named_buffers():
        buffer.copy_(kept[name])
    return [logits, *(inputs[name] for name in ("past_key_values",) if name in inputs)]


def check_caches(one, other):
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert torch.allclose(mine.keys, theirs.keys, atol=1e-4)
        assert torch.allclose(mine.values, theirs.values, atol=1e-4)
        assert mine.cumulative_length == theirs.cumulative_length


@pytest.mark.parametrize(
    ("query", "masked", "dynamic"),
    [
        pytest.param(1, False, False, marks=pytest.mark.sweep),
        pytest.param(1, True, False, marks=pytest.mark.sweep),
        (3, True, True),
    ],
)
def test_a_static_cache_goes_in_and_is_changed(query, masked, dynamic):
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    lm = model()
    ids = torch.arange(query)[None] + 5
    inputs = {"input_ids": ids, "past_key_values": filled_cache(lm, 1, tokens=4)}
    if masked:
        inputs["attention_mask"] = torch.ones(1, 4 + query, dtype=torch.int64)
    program, _ = DynamoExporter().export_program(lm, inputs, DynamoConfig(dynamic=dynamic))
    result = mla_opt.optimize(program)
    assert len(result.report.sites) == 2
    assert not result.report.interface_changes
    assert result.report.verification["passed"]
    check_steps(program, result.model, inputs, steps=1 if masked else 3)


@pytest.mark.parametrize("decomposed", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_a_cache_in_buffers(decomposed):
    module = Decoder(model(), batch=2).eval()
    inputs = {"input_ids": torch.tensor([[3], [5]])}
    with torch.no_grad():
        program = torch.export.export(module, (), inputs)
    if decomposed:
        program = program.run_decompositions()
    result = mla_opt.optimize(program)
    assert len(result.report.sites) == 2
    assert result.report.verification["passed"]
    assert {"cache_0_keys", "cache_1_values"} <= set(result.model.state_dict)
    check_steps(program, result.model, inputs)
