"""What the optimizer says of each control, whichever of its forms it is given in."""

from __future__ import annotations

import re

import mla_opt
from tests.exports.controls import CONTROLS

CODES = {
    "gpt2": "query_from_latent",
    "llama": "separate_projections",
    "phi3": "separate_projections",
    "qwen2": "separate_projections",
    "qwen3": "separate_projections",
    "mixtral": "separate_projections",
    "gemma": "separate_projections",
    "multi_query": "separate_projections",
    "bert": "query_from_latent",
    "t5_encoder": "query_from_latent",
    "t5": "query_from_latent",
    "whisper_encoder": "query_from_latent",
    "whisper": "query_from_latent",
    "vit": "query_from_latent",
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
#: What is said of the attention across, beside that of the others.
ACROSS = {"t5": "latent_not_narrower", "whisper": "tokens_apart"}
#: Nothing to refuse: there is no softmax over scores.
UNSEEN = {"linear_attention"}
#: Two layers each, of encoder, decoder and across; the others are a single block.
LAYERS = dict.fromkeys(list(CODES)[: list(CODES).index("vit") + 1], 2) | {"t5": 6, "whisper": 6}

assert CODES.keys() | UNSEEN == set(CONTROLS)


def check_refusals(name: str, report: mla_opt.OptimizationReport, code: str | None = None) -> None:
    """Every attention of a control is refused, each with a reason: by its code, or ``code``."""
    assert report.sites == ()
    if name in UNSEEN:
        assert report.refusals == ()
        return
    assert len(report.refusals) == LAYERS.get(name, 1)
    own = code or CODES[name]
    said = {own, ACROSS.get(name, own)}
    assert {refusal.code for refusal in report.refusals} == said
    assert len({refusal.site for refusal in report.refusals}) == len(report.refusals)
    for refusal in report.refusals:
        assert re.match(r"[a-z].{20,}", refusal.reason)
        assert refusal.nodes
        assert refusal.remedy
