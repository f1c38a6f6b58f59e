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
        held: whether it runs the expanded form as well, as the operator holds its weights.
    """

    geometry: MlaGeometry
    expands_from: int | None
    fused: bool
    held: bool = False


def read_attention(model: ir.Model, fused: bool) -> Attention | None:
    """Read it from the metadata and the weights that it names; ``None`` where they do not tell."""
    found = [_attention(model, site, fused) for site in read_sites(model)]
    known = [attention for attention in found if attention is not None]
    return max(known, key=lambda a: a.geometry.num_heads * a.geometry.latent_width, default=None)


def _attention(model: ir.Model, site: SiteRecord, fused: bool) -> Attention | None:
    if site.kv_b is not None:
        return _holding(model, site, fused)
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


def _holding(model: ir.Model, site: SiteRecord, fused: bool) -> Attention | None:
    """That of an operator which holds its weights: rows of a head beyond N are V."""
    rows, heads, nope = _stored(model, site.kv_b), site.num_heads, site.qk_nope_head_dim
    if not rows or not heads or nope is None:
        return None
    geometry = MlaGeometry(
        num_heads=heads,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=site.qk_rope_head_dim,
        v_head_dim=rows[0] // heads - nope,
        kv_lora_rank=site.kv_lora_rank,
    )
    return Attention(geometry, site.prefill_threshold, fused, held=fused)


def _shape(model: ir.Model, name: str | None) -> tuple[int, ...] | None:
    """Shape of a matrix of all heads."""
    shape = _stored(model, name)
    return shape if len(shape) == 3 else None


def _stored(model: ir.Model, name: str | None) -> tuple[int, ...]:
    value = None if name is None else model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        return ()
    return tuple(value.const_value.shape.numpy())


def _query_heads(model: ir.Model, name: str) -> int:
    """H of the absorbed query ``[B, H, S, C + R]``, if its shape is known."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.name == name and value.shape is not None and value.shape.rank() == 4:
                    return value.shape[1] if isinstance(value.shape[1], int) else 0
    return 0
