"""What the passes know of one latent attention: found, extracted, then rewritten step by step.

A site starts as the handles that ``find_latent_attention`` collected and gains weights, geometry
and choices from later passes. Values and nodes are handles of the graph that the site lives in
(:mod:`mla_opt.graphs.protocol`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mla_opt.geometry import MlaGeometry

if TYPE_CHECKING:
    from mla_opt.emission.operands import Operands, StoredWeights
    from mla_opt.graphs.protocol import Array, Node, Value
    from mla_opt.matching.attention_core import AttentionCore
    from mla_opt.matching.folding import OutputProjection, QueryProjection
    from mla_opt.matching.projection_walk import PastConcat
    from mla_opt.verification.interface_map import Ends

CacheFamily = Literal["latent", "expanded", "none"]
CacheLayout = Literal["expanded", "split", "packed", "static", "rows"]
Form = Literal["factored", "fold-q", "fold-o", "fold", "none"]
PrefillForm = Literal["absorbed", "expanded", "auto"]


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """The per-head matrices of one latent attention, and where the query's dims go.

    With ``c`` a latent row of width C and ``k_pe`` its rotary part of width R, head ``h`` has
    ``key[nope_dims] = w_uk[h] @ c``, ``key[rope_dims] = k_pe`` (both times ``key_scale``, which is
    taken out) and ``value = c @ w_uv[h] + value_bias[h]``.

    Attributes:
        w_uk: ``[H, N, C]``.
        w_uv: ``[H, C, V]``.
        value_bias: ``[H, V]``, or ``None`` when it is zero.
        nope_dims: the N positions of a head's key and query that ``w_uk`` makes, in its order.
        rope_dims: the R positions that hold ``k_pe``, in its order.
        key_scale: constant factor that the original has on its keys; belongs to the scale.
    """

    w_uk: Array
    w_uv: Array
    value_bias: Array | None
    nope_dims: tuple[int, ...]
    rope_dims: tuple[int, ...]
    key_scale: float


@dataclass(slots=True)
class CacheSlots:
    """The cache of one site: graph inputs, new rows and graph outputs, a pair for split caches.

    ``past`` are inputs of the graph, ``new`` the rows that this call adds, ``joined`` both, one
    behind the other. Each has one entry (packed) or two (``c_kv`` and ``k_pe``). A buffer has
    ``past_len`` valid rows before the call and ``written`` after it, of ``capacity`` if that is
    fixed. ``kept_as`` names the 16-bit type of a cache whose new rows have more bits. Sites that
    read the same rows share one of these.
    """

    layout: CacheLayout
    past: tuple[Value, ...]
    new: tuple[Value, ...]
    joined: tuple[Value, ...]
    past_len: Value | None = None
    written: Value | None = None
    capacity: int | None = None
    kept_as: str | None = None


@dataclass(slots=True)
class LatentAttentionSite:
    """One latent attention of a graph.

    Attributes:
        name: how reports call it; the module path of the attention where the graph shows one.
        core: the attention itself.
        projection: the linear layer that keys and values meet in.
        latent: ``c_kv`` rows, ``[B, 1, T, C]`` or ``[B, T, C]``; only the new rows when the model
            caches expanded keys and values.
        rope: ``k_pe`` rows, likewise; ``None`` when R is 0.
        expanded: the caches of expanded keys and values, ``(keys, values)``, if there are such.
        cache: the cache of latent rows, if there is one.
        stored: the matrices as stored tensors, once they are needed.
        only_new_rows: whether S = T in every call: there is no cache of any kind.
        original_cache: names of the cache's inputs and outputs in the model as it came.
        operands: what the rewritten site reads, once it is rewritten.
        fused: whether the operator reads the cache itself.
        appends: whether the site adds the new rows to its cache, or another has done so before.
        output: what the rewritten site returns: ``[B, H, S, V]``, or what the output projection
            returns where that is folded in.
        query_value: the absorbed query of the rewritten site, ``[B, H, S, C + R]``.
        query_projection: W_UQ, where W_UK is to be folded into it.
        output_projection: W_O, where W_UV is to be folded into it.
    """

    name: str
    core: AttentionCore
    projection: Node
    latent: Value
    rope: Value | None
    expanded: tuple[PastConcat, PastConcat] | None = None
    cache: CacheSlots | None = None
    original_cache: Ends | None = None
    only_new_rows: bool = False
    geometry: MlaGeometry | None = None
    weights: LatentWeights | None = None
    certificate_error: float = 0.0
    form: Form = "factored"
    form_reason: str = ""
    prefill: PrefillForm = "absorbed"
    prefill_reason: str = ""
    query_projection: QueryProjection | None = None
    output_projection: OutputProjection | None = None
    family: CacheFamily = "none"
    layout_before: CacheLayout = "rows"
    stored: StoredWeights | None = None
    operands: Operands | None = None
    fused: bool = False
    appends: bool = True
    output: Value | None = None
    query_value: Value | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def scale(self) -> float:
        """Factor on the scores of absorbed queries with latent rows."""
        factor = 1.0 if self.weights is None else self.weights.key_scale
        return self.core.scale * factor
