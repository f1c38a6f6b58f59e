"""Every family, as torch.export leaves it: found, rewritten, verified, and compared once more."""

from __future__ import annotations

import pytest
import torch

import mla_opt
from tests.exports.families import FAMILIES
from tests.programs import exporting

TOLERANCE = 5e-5
#: How much less exact than the model itself a program may be in 16 bits.
LOSS = 1.3

#: Decomposed, which other tests of programs are not. Other families are alike to what
#: `tests/end_to_end` exports to ONNX, and linear attention beside the latent one to what
#: `tests/runtimes` generates with; the sweep has all.
REPRESENTATIVES = [("deepseek_v2", "eager", "decomposed", True)]


def all_cases():
    for name, family in FAMILIES.items():
        for attention in family.attention:
            for form in ("exported", "decomposed"):
                for cache in (True, False) if family.flat_cache else (False,):
                    yield name, attention, form, cache


def check(family, attention, form, cache, dtype="float32"):
    flat = exporting.model(family, attention, cache, dtype)
    program = exporting.program(family, attention, cache, dtype)
    if form == "decomposed":
        program = program.run_decompositions()
    result = mla_opt.optimize(program, verify=dtype == "float32")
    assert len(result.report.sites) == FAMILIES[family].sites
    assert not result.report.refusals
    assert not result.report.interface_changes
    module = result.model.module()
    if dtype == "float32":
        assert exporting.worst_error(flat, module) <= TOLERANCE
    else:
        mine, its_own = exporting.typical_errors(flat, module, dtype)
        assert 0 < mine <= LOSS * its_own


@pytest.mark.parametrize(("family", "attention", "form", "cache"), REPRESENTATIVES)
def test_a_representative_is_rewritten_and_computes_the_same(family, attention, form, cache):
    check(family, attention, form, cache)


def test_bfloat16():
    check("deepseek_v3", "sdpa", "exported", True, "bfloat16")


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "attention", "form", "cache"), list(all_cases()))
def test_every_family(family, attention, form, cache, dtype):
    check(family, attention, form, cache, dtype)


def test_what_is_no_latent_attention_stays_the_same_object():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    flat = exporting.FlatCausalLM(LlamaForCausalLM(config).eval(), cache=True)
    program = exporting.exported(flat, "deepseek_v3", "float32")
    with pytest.raises(mla_opt.NothingMatchedError, match="none of 2 attentions is latent"):
        mla_opt.optimize(program)
    assert mla_opt.optimize(program, allow_unmatched=True).model is program
    assert all(not each.matched for each in mla_opt.inspect(program).attentions)


def test_find_names_the_sites_by_their_modules():
    found = mla_opt.find(exporting.program("deepseek_v3"))
    assert [each.name for each in found] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert found[0].geometry.kv_lora_rank == 48
    assert found[0].geometry.q_lora_rank == 52
    assert torch.is_tensor(exporting.program("deepseek_v3").state_dict["model.lm_head.weight"])
