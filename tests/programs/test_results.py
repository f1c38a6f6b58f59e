"""What comes out: a program like the one that went in, in every way that its users notice."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mla_opt
from tests.programs import exporting


@pytest.fixture(scope="module")
def program():
    return exporting.program("deepseek_v3")


@pytest.fixture(scope="module")
def optimized(program):
    return mla_opt.optimize(program, verify=False).model


def test_absorbed_weights_are_in_the_state_dict_and_unused_ones_are_gone(program, optimized):
    new = set(optimized.state_dict) - set(program.state_dict)
    gone = set(program.state_dict) - set(optimized.state_dict)
    layers = ("layers.0.self_attn", "layers.1.self_attn")
    assert new == {f"{layer}.mla.kv_b" for layer in layers}
    assert gone == {f"model.model.{layer}.kv_b_proj.weight" for layer in layers}
    kept = set(program.state_dict) & set(optimized.state_dict)
    assert all(optimized.state_dict[name] is program.state_dict[name] for name in kept)


def targets(program):
    modules = (m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    return [str(node.target) for module in modules for node in module.graph.nodes]


def test_an_attention_is_one_operator_and_no_conditional(optimized):
    called = targets(optimized)
    assert called.count("mla_opt.multi_head_latent_attention.default") == 2
    assert not [name for name in called if "cond" in name or "mla_opt.latent" in name]


@pytest.mark.parametrize("prefill", ["absorbed", "expanded"])
def test_one_form_by_name(program, prefill):
    result = mla_opt.optimize(program, prefill=prefill, weights="keep")
    assert result.report.verification["passed"]
    nodes = [node for node in result.model.graph.nodes if "form" in node.kwargs]
    assert [node.kwargs["form"] for node in nodes] == [prefill] * 2
    stored = result.report.stored
    assert (stored.before, stored.after) == (stored_bytes(program), stored_bytes(result.model))


def stored_bytes(program):
    """Bytes of parameters, buffers and constants, each tensor once."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return sum({id(each): each.nbytes for each in tensors if torch.is_tensor(each)}.values())


def test_weights_as_two_matrices(program):
    result = mla_opt.optimize(program, weights="float", verify=False)
    called = targets(result.model)
    assert "cond" in called
    assert "mla_opt.latent_attention.default" in called
    assert exporting.worst_error(exporting.model("deepseek_v3"), result.model.module()) < 5e-5


def test_weights_of_16_bits_stay_so(program):
    """A float32 program whose weights are numbers of float16."""
    short = {
        name: torch.nn.Parameter(each.half().float()) if "kv_b_proj" in name else each
        for name, each in program.state_dict.items()
    }
    rounded = copy.copy(program)
    rounded._state_dict = short
    result = mla_opt.optimize(rounded)
    assert result.report.verification["passed"]
    for layer in range(2):
        kept = result.model.state_dict[f"layers.{layer}.self_attn.mla.kv_b"]
        stored = short[f"model.model.layers.{layer}.self_attn.kv_b_proj.weight"]
        assert kept.dtype == torch.float16
        assert torch.equal(kept.float(), stored)


def test_it_is_called_as_before_and_keeps_its_dynamic_shapes(program, optimized):
    before, after = program.graph_signature, optimized.graph_signature
    assert after.user_inputs == before.user_inputs
    assert optimized.call_spec == program.call_spec
    assert optimized.range_constraints == program.range_constraints
    assert exporting.worst_error(exporting.model("deepseek_v3"), optimized.module()) < 5e-5


def test_the_program_that_went_in_is_not_changed(program):
    code = program.graph_module.code
    mla_opt.optimize(program, verify=False)
    assert program.graph_module.code == code
    assert "latent_attention" not in code


def test_saved_and_loaded_it_can_still_be_verified(program, optimized):
    file = io.BytesIO()
    torch.export.save(optimized, file)
    file.seek(0)
    report = mla_opt.verify(program, torch.export.load(file))
    assert report.passed, report.failures
    assert [control.detected for control in report.controls] == [True, True, True]


def test_an_optimized_program_says_so(program, optimized):
    for again in (optimized, optimized.module()):
        with pytest.raises(mla_opt.NothingMatchedError, match="optimized the model already; give"):
            mla_opt.optimize(again)
    (note,) = mla_opt.inspect(optimized).notes
    assert "has optimized this model" in note
    assert mla_opt.inspect(program).notes == ()
    operators = mla_opt.inspect(optimized).operators
    assert [each.name for each in operators] == ["layers.0.self_attn", "layers.1.self_attn"]
    first, geometry = operators[0], mla_opt.find(program)[0].geometry
    assert geometry is not None
    assert first.node is not None
    assert (first.num_heads, first.qk_nope_head_dim, first.v_head_dim) == (
        geometry.num_heads,
        geometry.qk_nope_head_dim,
        geometry.v_head_dim,
    )
    assert (first.form, first.cache) == ("factored", "split")
    assert mla_opt.inspect(program).operators == ()


def test_a_packed_cache_is_given_and_returned_by_name(program):
    result = mla_opt.optimize(program, cache="packed")
    assert result.report.verification["passed"]
    changed = {change.before.name for change in result.report.interface_changes if change.before}
    assert {"past_0", "past_1", "past_2", "past_3"} <= changed
    flat = exporting.model("deepseek_v3")
    *tokens, keys, values, more_keys, more_values = exporting.arguments(flat, (2, 3, 6))
    outputs = result.model.module()(
        input_ids=tokens[0],
        attention_mask=tokens[1],
        position_ids=tokens[2],
        past_latent=torch.cat([keys, values], -1),
        past_latent_2=torch.cat([more_keys, more_values], -1),
    )
    assert outputs["output_latent"].shape == (2, 1, 9, 56)


def test_portable_programs_need_nothing_of_this_package(program, tmp_path):
    result = mla_opt.optimize(program, target="portable")
    assert result.report.verification["passed"]
    torch.export.save(result.model, tmp_path / "portable.pt2")
    code = f"""
        import sys, torch
        program = torch.export.load({str(tmp_path / "portable.pt2")!r})
        program.module()
        assert "mla_opt" not in sys.modules
    """
    # PyTorch's extensions are off, of which the installed package is one.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_graph_modules_of_torch_export(program):
    module = program.module()
    result = mla_opt.optimize(module)
    assert isinstance(result.model, torch.fx.GraphModule)
    assert result.report.verification["passed"]
    assert exporting.worst_error(exporting.model("deepseek_v3"), result.model) < 5e-5
    names = dict(result.model.named_parameters())
    assert "layers.0.self_attn.mla.kv_b" in names
    assert not [name for name in names if "kv_b_proj" in name]


@pytest.mark.parametrize("absorb", ["fold", pytest.param("none", marks=pytest.mark.sweep)])
def test_other_forms(program, absorb):
    result = mla_opt.optimize(program, absorb=absorb)
    assert result.report.verification["passed"]
    assert {site.form for site in result.report.sites} == {absorb}


@pytest.mark.sweep
def test_it_compiles_ahead_of_time(optimized, tmp_path):
    flat = exporting.model("deepseek_v3")
    sizes = ((2, 5, 11), (1, 60, 4))
    package = torch._inductor.aoti_compile_and_package(
        optimized, package_path=str(tmp_path / "model.pt2")
    )
    assert exporting.worst_error(flat, torch._inductor.aoti_load_package(package), sizes) < 5e-5


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "attention"), [("deepseek_v3", "sdpa"), ("minicpm3", "eager")])
def test_compiled_programs(family, attention):
    optimized = mla_opt.optimize(exporting.program(family, attention), verify=False).model
    compiled = torch.compile(optimized.module(), dynamic=True)
    assert exporting.worst_error(exporting.model(family, attention), compiled) < 5e-5
