"""What cannot be used: one clear sentence, and nothing changed."""

from __future__ import annotations

import pytest
import torch

import mla_opt
from tests.programs import exporting


def test_a_program_in_training_mode():
    flat = exporting.model("deepseek_v3", "eager", cache=False)
    flat.model.config.attention_dropout = 0.1
    for module in flat.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    flat.train()
    try:
        program = exporting.exported(flat, "deepseek_v3", "float32")
    finally:
        flat.eval()
    with pytest.raises(mla_opt.InputError, match=r"training mode; call model\.eval"):
        mla_opt.optimize(program)


def test_a_graph_module_without_shapes():
    class Plain(torch.nn.Module):
        def forward(self, x):
            return x + 1

    with pytest.raises(mla_opt.InputError, match=r"placeholder 'x'.*no example value"):
        mla_opt.optimize(torch.fx.symbolic_trace(Plain()))


def test_buffers_of_fixed_capacity():
    with pytest.raises(mla_opt.InputError, match="cache 'static' is not for PyTorch programs"):
        mla_opt.optimize(exporting.program("deepseek_v3"), cache="static")


def test_engines():
    message = "target 'tensorrt' is not for PyTorch programs: export the program to ONNX first"
    with pytest.raises(mla_opt.InputError, match=message):
        mla_opt.optimize(exporting.program("deepseek_v3"), target="tensorrt", cache="static:64")


def test_a_model_on_the_meta_device_is_rewritten_without_a_certificate():
    flat = exporting.model("deepseek_v3")
    meta = exporting.FlatCausalLM(flat.model, cache=True)
    real = {name: tensor.clone() for name, tensor in flat.model.state_dict().items()}
    try:
        meta.to("meta")
        with torch.device("meta"):
            given = tuple(each.to("meta") for each in exporting._inputs(flat, "float32"))
        with torch.no_grad():
            program = torch.export.export(
                meta, given, dynamic_shapes=exporting._dynamic_shapes(meta)
            )
    finally:
        flat.model.to_empty(device="cpu")
        flat.model.load_state_dict(real)
        exporting.model.cache_clear()
    result = mla_opt.optimize(program)
    assert len(result.report.sites) == 2
    assert result.report.verification is None
    for site in result.report.sites:
        assert site.certificate_error is None
        assert any("meta device" in note for note in site.notes)
    assert all(tensor.is_meta for tensor in result.model.state_dict.values())
