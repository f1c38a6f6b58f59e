"""``torch.compile(model, backend="mla_opt")``."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.exports.families import FAMILIES
from tests.exports.flat import FlatCausalLM
from tests.programs import exporting


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.long
def test_steps_of_a_growing_cache_are_compiled_once(caplog):
    caplog.set_level(logging.INFO, logger="mla_opt")
    layer = FAMILIES["deepseek_v3"].build("sdpa", num_hidden_layers=1)
    flat = FlatCausalLM(layer, cache=True)
    compiled = torch.compile(flat, backend="mla_opt")
    sizes = tuple((1, 1, past) for past in (7, 8, 9, 15))
    assert exporting.worst_error(flat, compiled, sizes) < 5e-5
    rewritten = [each for each in caplog.messages if "absorbed and fused" in each]
    assert 1 <= len(rewritten) <= 2  # fixed sizes first, then any past


@pytest.mark.sweep
def test_a_static_cache_is_a_state_and_no_constant(caplog):
    """Dynamo hands over its tensors like buffers of the model: each call changes them."""
    from transformers import StaticCache

    caplog.set_level(logging.INFO, logger="mla_opt")
    model = FAMILIES["deepseek_v3"].build("sdpa")
    compiled = torch.compile(model, backend="mla_opt")

    def logits(call):
        cache = StaticCache(config=model.config, max_cache_len=24)
        ids, steps = torch.arange(8).reshape(2, 4), []
        with torch.no_grad():
            for step in range(4):
                steps.append(call(input_ids=ids, past_key_values=cache).logits[:, -1].clone())
                ids = (7 * ids[:, :1] + step + 3) % 97
        return steps

    for _ in range(2):  # the second time with a cache that was not there when it was compiled
        assert exporting.error(logits(compiled), logits(model)) < 5e-5
    assert "2 latent attentions absorbed and fused" in caplog.messages


def test_a_graph_without_latent_attention_passes_through(caplog):
    caplog.set_level(logging.INFO, logger="mla_opt")
    layer = torch.nn.Linear(5, 3)
    compiled = torch.compile(layer, backend="mla_opt")
    given = torch.randn(2, 5)
    with torch.no_grad():
        assert torch.allclose(compiled(given), layer(given))
    assert "absorbed and fused" not in caplog.text or "0 latent" in caplog.text


@pytest.mark.long
def test_a_graph_that_records_gradients_passes_through_and_says_so(caplog):
    layer = torch.nn.Linear(5, 3)
    compiled = torch.compile(layer, backend="mla_opt")
    compiled(torch.randn(2, 5)).sum().backward()
    assert layer.weight.grad is not None
    assert "records gradients" in caplog.text
