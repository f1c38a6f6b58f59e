"""What each form of a latent attention costs, from its dimensions alone.

Everything here is a pure function of the geometry, the element size, B, S, T and a description of
the machine. B sequences run S new tokens each against T keys (past + S); causal attention sees
``T - (S - 1) / 2`` of them on average. A stage takes ``max(FLOP / F, bytes / BW) + launch``; a form
is the sum of its stages. These are lower bounds, good for comparing forms, not forecasts.

| form | query side | attention over | output side |
|---|---|---|---|
| ``factored`` | W_UQ, then W_UK per head | latent rows | W_UV per head, then W_O |
| ``fold-q`` | W_UQ W_UK in one | latent rows | W_UV per head, then W_O |
| ``fold-o`` | W_UQ, then W_UK per head | latent rows | W_UV W_O in one |
| ``fold`` | W_UQ W_UK in one | latent rows | W_UV W_O in one |
| ``expanded`` | W_UQ | keys and values, expanded again from all T latent rows | W_O |
| ``expanded-cache`` | W_UQ | cached keys and values; only the S new rows are expanded | W_O |

A matrix whose size the graph does not tell (``hidden_size`` unknown) counts as nothing, in every
form alike; folding into it is then never chosen.
"""

from mla_opt.cost_model.chunks import MAX_CHUNK, Prefill, choose_chunk
from mla_opt.cost_model.folding import FormChoice, choose_form
from mla_opt.cost_model.forms import COST_FORMS, AbsorbedForm, CostForm, form_before
from mla_opt.cost_model.hardware import DEFAULT_HARDWARE, HARDWARE, Hardware
from mla_opt.cost_model.prefill import PrefillChoice, choose_prefill, expanded_from
from mla_opt.cost_model.stages import (
    Cost,
    Stage,
    StageTerms,
    attention_stage,
    cost,
    stage_terms,
)
from mla_opt.cost_model.terms import Terms
from mla_opt.cost_model.weights import cache_bytes_per_token, weight_bytes, weight_count
from mla_opt.cost_model.workload import DECODE, Workload

__all__ = [
    "COST_FORMS",
    "DECODE",
    "DEFAULT_HARDWARE",
    "HARDWARE",
    "MAX_CHUNK",
    "AbsorbedForm",
    "Cost",
    "CostForm",
    "FormChoice",
    "Hardware",
    "Prefill",
    "PrefillChoice",
    "Stage",
    "StageTerms",
    "Terms",
    "Workload",
    "attention_stage",
    "cache_bytes_per_token",
    "choose_chunk",
    "choose_form",
    "choose_prefill",
    "cost",
    "expanded_from",
    "form_before",
    "stage_terms",
    "weight_bytes",
    "weight_count",
]
