"""What an optimized model says of itself, so that it can be verified and understood later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence

from mla_opt.cost_model import expanded_from
from mla_opt.handles import Value
from mla_opt.sites import Ends, LatentAttentionSite
from mla_opt.verification.interface_map import METADATA_KEY as INTERFACE_KEY
from mla_opt.verification.interface_map import InterfaceMap, StateMap
from mla_opt.verification.site_records import METADATA_KEY as SITES_KEY
from mla_opt.verification.site_records import SiteRecord, sites_to_json
from mla_opt.version import tool_version

VERSION_KEY = "mla_opt.version"


def record(
    metadata: MutableMapping[str, str],
    sites: Sequence[LatentAttentionSite],
    is_stored: Callable[[Value], bool],
) -> None:
    """Write down the sites, and how the caches of the model stand for the original's.

    ``is_stored`` tells whether the model still stores a tensor: what nothing reads was dropped.
    """
    metadata[VERSION_KEY] = tool_version()
    records = tuple(_site(site, is_stored) for site in sites if site.query_value is not None)
    metadata[SITES_KEY] = sites_to_json(records)
    interface = _interface(sites)
    if interface.states:
        metadata[INTERFACE_KEY] = interface.to_json()


def by_whom(metadata: Mapping[str, str]) -> str | None:
    """Say which release wrote such a model; ``None`` where none did."""
    version = metadata.get(VERSION_KEY)
    return None if version is None else f"mla-opt {version}"


def _site(site: LatentAttentionSite, is_stored: Callable[[Value], bool]) -> SiteRecord:
    assert site.weights is not None and site.stored is not None and site.query_value is not None
    stored = site.stored
    return SiteRecord(
        name=site.name,
        query=_name(site.query_value),
        w_uk=_name(stored.w_uk) if is_stored(stored.w_uk) else None,
        w_uv=_name(stored.w_uv) if is_stored(stored.w_uv) else None,
        scale=site.scale,
        kv_lora_rank=site.weights.w_uk.shape[2],
        qk_rope_head_dim=len(site.weights.rope_dims),
        prefill_threshold=_threshold(site),
    )


def _threshold(site: LatentAttentionSite) -> int | None:
    """New tokens from which on the site expands; ``None`` where it never does."""
    assert site.geometry is not None
    return None if site.prefill == "absorbed" else expanded_from(site.geometry, site.prefill)


def _interface(sites: Sequence[LatentAttentionSite]) -> InterfaceMap:
    states: dict[tuple[str, ...], StateMap] = {}
    past_len, capacity, prompts_only = None, None, False
    for site in sites:
        if site.cache is None or site.original_cache is None:
            continue
        original, optimized = site.original_cache, _ends(site)
        layout = site.cache.layout
        if layout == "split" and site.family == "latent" and site.cache.kept_as is None:
            continue
        states.setdefault(original.inputs, _state(site, original, optimized))
        if site.cache.past_len is not None:
            past_len, capacity = site.cache.past_len.name, site.cache.capacity
            prompts_only = site.prefill == "expanded"
    return InterfaceMap(tuple(states.values()), past_len, capacity, prompts_only)


def _state(site: LatentAttentionSite, original: Ends, optimized: Ends) -> StateMap:
    assert site.geometry is not None and site.cache is not None
    layout = site.cache.layout
    assert layout in ("split", "packed", "static")
    return StateMap(
        layer=site.name,
        original=original,
        optimized=optimized,
        layout=layout,
        kv_lora_rank=site.geometry.kv_lora_rank,
        qk_rope_head_dim=site.geometry.qk_rope_head_dim,
        num_heads=site.geometry.num_heads,
    )


def _ends(site: LatentAttentionSite) -> Ends:
    assert site.cache is not None
    return Ends(tuple(map(_name, site.cache.past)), tuple(map(_name, site.cache.joined)))


def _name(value: Value) -> str:
    assert value.name is not None
    return value.name
