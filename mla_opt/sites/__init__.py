"""What is known of one latent attention, from the pass that finds it to the one that is last.

A site starts as the handles that ``find_latent_attention`` collected and gains weights, geometry
and choices from later passes. These are data only: matching fills them, emission reads them, and a
graph carries them. Values and nodes are handles of the graph that the site lives in
(:mod:`mla_opt.handles`).
"""

from __future__ import annotations

from mla_opt.sites.cache import (
    CachedTensor,
    CacheFamily,
    CacheLayout,
    CacheSlots,
    Ends,
    Positions,
)
from mla_opt.sites.core import AttentionCore, BiasTerm
from mla_opt.sites.fused import FusedAttention
from mla_opt.sites.latent_rows import LatentRows
from mla_opt.sites.operands import Operands
from mla_opt.sites.projections import OutputProjection, QueryProjection
from mla_opt.sites.site import Form, LatentAttentionSite, PrefillForm
from mla_opt.sites.weights import LatentWeights, StoredWeights

__all__ = [
    "AttentionCore",
    "BiasTerm",
    "CacheFamily",
    "CacheLayout",
    "CacheSlots",
    "CachedTensor",
    "Ends",
    "Form",
    "FusedAttention",
    "LatentAttentionSite",
    "LatentRows",
    "LatentWeights",
    "Operands",
    "OutputProjection",
    "Positions",
    "PrefillForm",
    "QueryProjection",
    "StoredWeights",
]
