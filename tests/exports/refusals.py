"""What the optimizer says of each control, whichever of its forms it is given in."""

from __future__ import annotations

import re

import mla_opt
from tests.exports.controls import CONTROLS

CODES = {
    "gpt2": "query_from_projection",
    "llama": "keys_not_from_latent",
    "phi3": "keys_not_from_latent",
    "qwen2": "keys_not_from_latent",
    "qwen3": "keys_not_from_latent",
    "mixtral": "keys_not_from_latent",
    "gemma": "keys_not_from_latent",
    "multi_query": "keys_not_from_latent",
    "bert": "separate_projections",
    "t5_encoder": "separate_projections",
    "t5": "separate_projections",
    "whisper_encoder": "separate_projections",
    "whisper": "separate_projections",
    "vit": "separate_projections",
    "query_from_latent_projection": "query_from_projection",
    "separate_key_value_linears": "separate_projections",
    "separate_latents": "separate_projections",
    "rope_per_head": "rope_per_head",
    "wide_latent": "latent_not_narrower",
    "square_latent": "latent_not_narrower",
    "dynamic_projection": "projection_not_constant",
    "weight_as_input": "projection_not_constant",
    "nonlinear_values": "not_linear",
    "nonlinear_keys": "keys_not_from_latent",
    "token_mixing": "keys_not_from_latent",
    "token_reversal": "certificate_failed",
    "data_dependent_scale": "not_linear",
    "head_mixing": "keys_not_from_latent",
}
#: Nothing to refuse: there is no softmax over scores.
UNSEEN = {"linear_attention"}
#: Two layers each, of encoder, decoder and across; the others are a single block.
LAYERS = dict.fromkeys(list(CODES)[: list(CODES).index("vit") + 1], 2) | {"t5": 6, "whisper": 6}

assert CODES.keys() | UNSEEN == set(CONTROLS)


def check_refusals(name: str, report: mla_opt.OptimizationReport) -> None:
    """Every attention of a control is refused, each with a reason."""
    assert report.sites == ()
    if name in UNSEEN:
        assert report.refusals == ()
        return
    assert [refusal.code for refusal in report.refusals] == [CODES[name]] * LAYERS.get(name, 1)
    assert len({refusal.site for refusal in report.refusals}) == len(report.refusals)
    for refusal in report.refusals:
        assert re.match(r"[a-z].{20,}", refusal.reason)
        assert refusal.nodes
