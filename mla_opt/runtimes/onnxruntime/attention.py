"""The dimensions of a model's latent attention that decide how much of a prompt goes in at once."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.geometry import MlaGeometry
from mla_opt.verification.site_records import SiteRecord, read_sites


@dataclass(frozen=True, slots=True)
class Attention:
    """The costliest latent attention of a model.

    Attributes:
        geometry: its dimensions; N is 0 where its ``W_UK`` is folded, as it then never expands.
        expands_from: query length from which on it expands keys and values; ``None``: never. With
            the kernel library it may do so later only, and takes less memory then.
        fused: whether the kernel runs the absorbed form, which keeps no scores.
    """

    geometry: MlaGeometry
    expands_from: int | None
    fused: bool


def read_attention(model: ir.Model, fused: bool) -> Attention | None:
    """Read it from the metadata and the weights that it names; ``None`` where they do not tell."""
    found = [_attention(model, site, fused) for site in read_sites(model)]
    known = [attention for attention in found if attention is not None]
    return max(known, key=lambda a: a.geometry.num_heads * a.geometry.latent_width, default=None)


def _attention(model: ir.Model, site: SiteRecord, fused: bool) -> Attention | None:
    up_keys, up_values = _shape(model, site.w_uk), _shape(model, site.w_uv)
    heads = (up_keys or up_values or (0,))[0] or _query_heads(model, site.query)
    if not heads:
        return None
    geometry = MlaGeometry(
        num_heads=heads,
        qk_nope_head_dim=up_keys[1] if up_keys else 0,
        qk_rope_head_dim=site.qk_rope_head_dim,
        v_head_dim=up_values[2] if up_values else 0,
        kv_lora_rank=site.kv_lora_rank,
    )
    return Attention(geometry, site.prefill_threshold, fused)


def _shape(model: ir.Model, name: str | None) -> tuple[int, ...] | None:
    value = None if name is None else model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        return None
    shape = tuple(value.const_value.shape.numpy())
    return shape if len(shape) == 3 else None


def _query_heads(model: ir.Model, name: str) -> int:
    """H of the absorbed query ``[B, H, S, C + R]``, if its shape is known."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.name == name and value.shape is not None and value.shape.rank() == 4:
                    return value.shape[1] if isinstance(value.shape[1], int) else 0
    return 0
