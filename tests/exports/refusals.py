"""What the optimizer says of each control, whichever of its forms it is given in."""

from __future__ import annotations

import re

import mla_opt
from tests.exports.controls import CONTROLS

CODES = {
    "gpt2": "latent_not_narrower",
    "llama": "separate_projections",
    "phi3": "separate_projections",
    "qwen2": "separate_projections",
    "qwen3": "separate_projections",
    "mixtral": "separate_projections",
    "gemma": "separate_projections",
    "multi_query": "separate_projections",
    "bert": "latent_not_narrower",
    "t5_encoder": "latent_not_narrower",
    "t5": "latent_not_narrower",
    "whisper_encoder": "latent_not_narrower",
    "whisper": "latent_not_narrower",
    "vit": "latent_not_narrower",
    "query_from_latent_projection": "query_from_latent",
    "separate_latents": "separate_projections",
    "rope_per_head": "rope_per_head",
    "wide_latent": "latent_not_narrower",
    "square_latent": "latent_not_narrower",
    "dynamic_projection": "projection_not_constant",
    "weight_as_input": "projection_not_constant",
    "nonlinear_values": "not_linear",
    "nonlinear_keys": "not_linear",
    "token_mixing": "not_linear",
    "token_reversal": "tokens_apart",
    "data_dependent_scale": "not_linear",
    "head_mixing": "not_linear",
}
#: What else is said where a graph is written otherwise: each is a true reason.
OF_ITS_FORM = {
    "latent_not_narrower",
    "not_linear",
    "query_from_latent",
    "separate_projections",
    "tokens_apart",
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
    assert len(report.refusals) == LAYERS.get(name, 1)
    assert {refusal.code for refusal in report.refusals} <= {CODES[name], *OF_ITS_FORM}
    assert len({refusal.site for refusal in report.refusals}) == len(report.refusals)
    for refusal in report.refusals:
        assert re.match(r"[a-z].{20,}", refusal.reason)
        assert refusal.nodes
