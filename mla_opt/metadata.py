"""What an optimized model says of itself, so that it can be verified and understood later."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, MutableMapping, Sequence
from dataclasses import replace

from mla_opt.cost_model import expanded_from
from mla_opt.errors import PassError
from mla_opt.handles import Value
from mla_opt.report.inspection import OperatorReport
from mla_opt.sites import Ends, Form, FusedAttention, LatentAttentionSite
from mla_opt.verification.interface_map import METADATA_KEY as INTERFACE_KEY
from mla_opt.verification.interface_map import DroppedInput, InterfaceMap, StateMap
from mla_opt.verification.onnx.quantized import quantized_name
from mla_opt.verification.site_records import METADATA_KEY as SITES_KEY
from mla_opt.verification.site_records import SiteRecord, parse_sites, sites_to_json
from mla_opt.version import tool_version

VERSION_KEY = "mla_opt.version"

Dropped = tuple[str, str, tuple[int | str | None, ...]]
"""An input that a model has no more: its name, ONNX's name of its element type, its sizes."""


def record(
    metadata: MutableMapping[str, str],
    sites: Sequence[LatentAttentionSite],
    is_stored: Callable[[Value], bool],
    dropped: Sequence[Dropped] = (),
) -> None:
    """Write down the sites, and how the caches of the model stand for the original's.

    ``is_stored`` tells whether the model still stores a tensor: what nothing reads was dropped.
    ``dropped`` are inputs that the model has no more, beside those of caches.

    Raises:
        PassError: a cache was prepared for a pass that did not run.
    """
    _check_buffers(sites)
    metadata[VERSION_KEY] = tool_version()
    records = tuple(_site(site, is_stored) for site in sites if site.query_value is not None)
    metadata[SITES_KEY] = sites_to_json(records)
    gone = tuple(DroppedInput(*each) for each in dropped)
    interface = replace(_interface(sites), dropped=gone)
    if interface.states:
        metadata[INTERFACE_KEY] = interface.to_json()


def _check_buffers(sites: Sequence[LatentAttentionSite]) -> None:
    """A buffer told as a cache that grows is one of rows in their places only once it is written.

    Raises:
        PassError: a pass that should have done so was left out.
    """
    for site in sites:
        cache = site.cache
        if cache is not None and cache.start is not None and cache.past_len is None:
            raise PassError(f"{site.name} keeps a buffer; run write_cache_in_place, too")


def by_whom(metadata: Mapping[str, str]) -> str | None:
    """Say which release wrote such a model; ``None`` where none did."""
    version = metadata.get(VERSION_KEY)
    return None if version is None else f"mla-opt {version}"


def operators(
    metadata: Mapping[str, str],
    nodes: Sequence[FusedAttention],
    stored: Mapping[str, tuple[int, ...]],
    made: Container[str],
) -> tuple[OperatorReport, ...]:
    """Tell of the attentions of an optimized model: what it says of itself, and what it has.

    Args:
        metadata: the model's.
        nodes: its fused operators.
        stored: the shape of every stored tensor, by name.
        made: names of all values; a record of a value that is gone is not told.

    Raises:
        InputError: the metadata is not what it should be.
    """
    by_query = {node.query: node for node in nodes}
    records = [each for each in parse_sites(metadata) if each.query in made]
    told = [_operator(each, by_query.get(each.query), stored) for each in records]
    known = {each.query for each in records}
    return (*told, *(_unrecorded(node) for node in nodes if node.query not in known))


def _operator(
    record: SiteRecord, node: FusedAttention | None, stored: Mapping[str, tuple[int, ...]]
) -> OperatorReport:
    w_uk, w_uv = _shape(record.w_uk, stored), _shape(record.w_uv, stored)
    heads = node.num_heads if node is not None else None
    return OperatorReport(
        name=record.name,
        node=None if node is None else node.label,
        num_heads=next((each[0] for each in (w_uk, w_uv) if each is not None), heads),
        qk_nope_head_dim=record.qk_nope_head_dim if w_uk is None else w_uk[1],
        qk_rope_head_dim=record.qk_rope_head_dim,
        v_head_dim=_held_values(record, stored) if w_uv is None else w_uv[2],
        kv_lora_rank=record.kv_lora_rank,
        scale=record.scale,
        dtype="unknown" if node is None else node.dtype,
        cache=None if node is None else node.layout,
        cache_dtype=None if node is None else node.cache_dtype,
        form=_form(record),
        prefill_threshold=record.prefill_threshold,
    )


def _unrecorded(node: FusedAttention) -> OperatorReport:
    """An operator that the metadata does not know: all is told that its node shows."""
    return OperatorReport(
        name=node.label,
        node=node.label,
        num_heads=node.num_heads,
        qk_nope_head_dim=None,
        qk_rope_head_dim=node.qk_rope_head_dim,
        v_head_dim=None,
        kv_lora_rank=node.kv_lora_rank,
        scale=node.scale,
        dtype=node.dtype,
        cache=node.layout,
        cache_dtype=node.cache_dtype,
        form=None,
        prefill_threshold=None,
    )


def _shape(name: str | None, stored: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Shape of a matrix of all heads, which a quantizer may have given another name."""
    names = () if name is None else (name, quantized_name(name))
    shapes = (stored.get(each, ()) for each in names)
    return next((shape for shape in shapes if len(shape) == 3), None)


def _held_values(record: SiteRecord, stored: Mapping[str, tuple[int, ...]]) -> int | None:
    """V of an operator that holds its weights: rows of a head beyond N."""
    shape = None if record.kv_b is None else stored.get(record.kv_b)
    if not shape or not record.num_heads or record.qk_nope_head_dim is None:
        return None
    return shape[0] // record.num_heads - record.qk_nope_head_dim


def _form(record: SiteRecord) -> Form:
    """What is folded is not stored by itself any more."""
    if record.kv_b is not None:
        return "factored"
    if record.w_uk is None:
        return "fold" if record.w_uv is None else "fold-q"
    return "fold-o" if record.w_uv is None else "factored"


def _site(site: LatentAttentionSite, is_stored: Callable[[Value], bool]) -> SiteRecord:
    assert site.weights is not None and site.stored is not None and site.query_value is not None
    stored = site.stored
    if site.held_weights:
        return _holding(site)
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


def _holding(site: LatentAttentionSite) -> SiteRecord:
    """The record of a site whose operator holds its weights."""
    assert site.geometry is not None and site.query_value is not None
    names = {name: _name(value) for name, value in site.held_weights.items()}
    return SiteRecord(
        name=site.name,
        query=_name(site.query_value),
        w_uk=None,
        scale=site.scale,
        kv_lora_rank=site.geometry.kv_lora_rank,
        qk_rope_head_dim=site.geometry.qk_rope_head_dim,
        prefill_threshold=_threshold(site),
        kv_b=names["kv_b"],
        kv_b_scales=names.get("kv_b_scales"),
        kv_b_zero_points=names.get("kv_b_zero_points"),
        kv_b_factors=names.get("kv_b_factors"),
        num_heads=site.geometry.num_heads,
        qk_nope_head_dim=site.geometry.qk_nope_head_dim,
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
        if site.cache.own:
            continue
        states.setdefault(original.inputs, _state(site, original, optimized))
        if site.cache.past_len is not None:
            capacity = site.cache.capacity
            past_len = site.cache.past_len.name if site.cache.start is None else past_len
            prompts_only = site.prefill == "expanded"
    return InterfaceMap(tuple(states.values()), past_len, capacity, prompts_only)


def _state(site: LatentAttentionSite, original: Ends, optimized: Ends) -> StateMap:
    assert site.geometry is not None and site.cache is not None
    layout = site.cache.layout
    assert layout in ("split", "packed", "even", "static", "paged")
    return StateMap(
        layer=site.name,
        original=original,
        optimized=optimized,
        layout=layout,
        kv_lora_rank=site.geometry.kv_lora_rank,
        qk_rope_head_dim=site.geometry.qk_rope_head_dim,
        num_heads=site.geometry.num_heads,
        reordered=site.reordered,
    )


def _ends(site: LatentAttentionSite) -> Ends:
    assert site.cache is not None
    return Ends(tuple(map(_name, site.cache.past)), tuple(map(_name, site.cache.outputs)))


def _name(value: Value) -> str:
    assert value.name is not None
    return value.name
