"""One latent attention: found, extracted, then rewritten step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mla_opt.geometry import MlaGeometry
from mla_opt.handles import Node, Value
from mla_opt.sites.cache import CachedTensor, CacheFamily, CacheLayout, CacheSlots, Ends
from mla_opt.sites.core import AttentionCore
from mla_opt.sites.latent_rows import LatentRows
from mla_opt.sites.layout import Layout
from mla_opt.sites.operands import Operands
from mla_opt.sites.projections import OutputProjection, QueryProjection
from mla_opt.sites.weights import LatentWeights, StoredWeights

Form = Literal["factored", "fold-q", "fold-o", "fold", "none"]
PrefillForm = Literal["absorbed", "expanded", "auto"]


@dataclass(slots=True)
class LatentAttentionSite:
    """One latent attention of a graph.

    Attributes:
        name: how reports call it; the module path of the attention where the graph shows one.
        core: the attention itself.
        projection: the linear layer that everything made of ``latent`` comes through, if it is one.
        latents: ``c_kv`` rows, one value, or one for each group of heads; side by side they are the
            row of a token. Only the new rows when the model caches expanded keys and values.
        rope: ``k_pe`` rows, likewise; ``None`` when R is 0.
        rope_layout: where sequences, tokens and width are among its axes.
        expanded: the caches of expanded keys and values, ``(keys, values)``, if there are such.
        held: the tensors that the model caches the latent rows in, if it does.
        not_held: why there are none such, in words.
        cache: the cache of latent rows, as the operator appends to it.
        stored: the matrices as stored tensors, once they are needed.
        only_new_rows: whether S = T in every call: there is no cache of any kind.
        inner: everything between the rows and the output, as the model came.
        reordered: whether the model as it came cached the numbers of a row in another order.
        original_cache: names of the cache's inputs and outputs in the model as it came.
        operands: what the rewritten site reads, once it is rewritten.
        fused: whether the operator reads the cache itself.
        chooses: whether its operator chooses the form of a call, as it will hold the weights.
        appends: whether the site adds the new rows to its cache, or another has done so before.
        output: what the rewritten site returns: ``[B, H, S, V]``, or what the output projection
            returns where that is folded in.
        query_value: the absorbed query of the rewritten site, ``[B, H, S, C + R]``; where the
            operator holds its weights, the query before absorption, ``[B, H, S, N + R]``.
        held_weights: the tensors that such an operator holds, by the names of its inputs.
        query_projection: W_UQ, where W_UK is to be folded into it.
        output_projection: W_O, where W_UV is to be folded into it.
    """

    name: str
    core: AttentionCore
    projection: Node | None
    latents: tuple[LatentRows, ...]
    rope: Value | None
    rope_layout: Layout | None = None
    expanded: tuple[CachedTensor, CachedTensor] | None = None
    held: tuple[CachedTensor, ...] = ()
    not_held: str = ""
    cache: CacheSlots | None = None
    original_cache: Ends | None = None
    reordered: bool = False
    inner: tuple[Value, ...] = ()
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
    chooses: bool = False
    appends: bool = True
    output: Value | None = None
    query_value: Value | None = None
    held_weights: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def latent(self) -> Value:
        """The ``c_kv`` rows; those of the first group where heads have several."""
        return self.latents[0].value

    def join_rows(self) -> None:
        """Count the numbers of ``k_pe`` among those of ``c_kv``, behind them: R is 0 then."""
        assert self.rope is not None and self.rope_layout is not None
        self.latents = (*self.latents, LatentRows(self.rope, self.rope_layout))
        self.rope = self.rope_layout = self.projection = None
        if self.cache is not None and len(self.cache.past) > 1:
            self.cache = None

    @property
    def can_append(self) -> bool:
        """Whether the operator can write the new rows into the cache by itself."""
        return self.cache is not None and self.cache.positions is None and self.form != "none"

    @property
    def scale(self) -> float:
        """Factor on the scores of absorbed queries with latent rows."""
        factor = 1.0 if self.weights is None else self.weights.key_scale
        return self.core.scale * factor
