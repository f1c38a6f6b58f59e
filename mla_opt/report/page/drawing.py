"""One attention as boxes and arrows: what is stored, what is made, what is multiplied by what.

The page gives the boxes their places. What is drawn follows from the dimensions and the form, as
the cost model sees them; it is a plan of the layer, not the list of its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mla_opt.cost_model import CostForm, Terms
from mla_opt.cost_model.forms import FOLDS_OUTPUT, FOLDS_QUERY
from mla_opt.geometry import MlaGeometry
from mla_opt.sites import CacheFamily

Kind = Literal["tensor", "operator", "cache"]


@dataclass(frozen=True, slots=True)
class Box:
    """A tensor, a cache, or an operator.

    Attributes:
        key: names it within its drawing.
        kind: what it is.
        title: its name.
        shape: its sizes, as text.
        stage: of an operator, the stage of the cost model that it is timed as; else empty.
        bytes: of a tensor or a cache, how many it takes at a call; ``None`` where that is not told.
    """

    key: str
    kind: Kind
    title: str
    shape: str
    stage: str = ""
    bytes: Terms | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, arrows between their keys, and the same in a sentence."""

    form: CostForm
    text: str
    boxes: tuple[Box, ...]
    arrows: tuple[tuple[str, ...], ...]


def draw(
    geometry: MlaGeometry,
    form: CostForm,
    family: CacheFamily,
    dtype_bytes: int,
    cache_bytes_per_token: int | None,
) -> Drawing:
    """Draw one attention in ``form``.

    Args:
        geometry: its dimensions.
        form: how it is computed.
        family: what the model caches as it was exported.
        dtype_bytes: bytes of a number of an activation.
        cache_bytes_per_token: bytes of a row of the cache; ``None`` where that is not known.
    """
    plan = _Plan(geometry, dtype_bytes, cache_bytes_per_token, has_cache=family != "none")
    if form == "expanded-cache":
        core, text = plan.cached_keys(), _CACHED
    elif form == "expanded":
        core, text = plan.expanded_again(), _EXPANDED
    else:
        core, text = plan.absorbed(), _ABSORBED
    boxes = (plan.input(), *plan.query(form), *core[0], *plan.output(form), plan.result())
    arrows = (*_chain(plan.query_keys(form)), *core[1], *_chain(plan.output_keys(form)))
    return Drawing(form, text, boxes, arrows)


_EXPANDED = "Keys and values of every head are made again from all latent rows, at every call."
_CACHED = "Keys and values of every head are cached; each new row is expanded once."
_ABSORBED = "Attention reads the latent rows themselves; keys and values are never made."

_Part = tuple[tuple[Box, ...], tuple[tuple[str, ...], ...]]


def _chain(keys: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(pairwise(keys))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Makes the boxes of one attention."""

    geometry: MlaGeometry
    size: int
    row_bytes: int | None
    has_cache: bool

    def input(self) -> Box:
        """What the query is made of."""
        geometry = self.geometry
        width = geometry.q_lora_rank or geometry.hidden_size
        title = "hidden states" if geometry.q_lora_rank is None else "query latent c_q"
        return self._tensor("input", title, f"[B, S, {width or 'E'}]", token=width or 0)

    def result(self) -> Box:
        """What the layer hands on."""
        width = self.geometry.hidden_size
        return self._tensor("result", "output", f"[B, S, {width or 'E'}]", token=width or 0)

    def query(self, form: CostForm) -> tuple[Box, ...]:
        """The products before the attention."""
        width = self.geometry.q_lora_rank or self.geometry.hidden_size or "E"
        heads, latent = self.geometry.num_heads, self.geometry.latent_width
        if form in FOLDS_QUERY:
            return (_operator("W_UQ W_UK", f"{width} × {heads}·{latent}"),)
        up = _operator("W_UQ", f"{width} × {heads}·{self.geometry.qk_head_dim}")
        if form in ("expanded", "expanded-cache"):
            return (up,)
        down = f"{heads} × {self.geometry.qk_nope_head_dim} × {self.geometry.kv_lora_rank}"
        return up, _operator("W_UK", down)

    def query_keys(self, form: CostForm) -> tuple[str, ...]:
        """From the input to the attention."""
        return ("input", *(box.key for box in self.query(form)), "attention")

    def output(self, form: CostForm) -> tuple[Box, ...]:
        """The products behind the attention."""
        hidden, heads = self.geometry.hidden_size or "E", self.geometry.num_heads
        rank, value = self.geometry.kv_lora_rank, self.geometry.v_head_dim
        if form in FOLDS_OUTPUT:
            return (_operator("W_UV W_O", f"{heads}·{rank} × {hidden}"),)
        out = _operator("W_O", f"{heads}·{value} × {hidden}")
        if form in ("expanded", "expanded-cache"):
            return (out,)
        return _operator("W_UV", f"{heads} × {rank} × {value}"), out

    def output_keys(self, form: CostForm) -> tuple[str, ...]:
        """From the attention to the result."""
        return ("attention", *(box.key for box in self.output(form)), "result")

    def absorbed(self) -> _Part:
        """Attention on latent rows."""
        heads, rank = self.geometry.num_heads, self.geometry.kv_lora_rank
        shape = f"{heads} heads, rows of {self.geometry.latent_width}, output {rank}"
        attention = Box("attention", "operator", "latent attention", shape, "latent attention")
        return (self._rows(), attention), (("rows", "attention"),)

    def expanded_again(self) -> _Part:
        """Attention on keys and values that are made of all rows."""
        shape = f"{self.geometry.num_heads} heads, keys of {self.geometry.qk_head_dim}"
        boxes = (
            self._rows(),
            _operator("W_UK W_UV", self._kv_b(), stage=""),
            self._keys("tensor", "keys and values, made again", None),
            Box("attention", "operator", "attention", shape, "expand and attend"),
        )
        return boxes, _chain(("rows", "W_UK W_UV", "keys", "attention"))

    def cached_keys(self) -> _Part:
        """Attention on cached keys and values."""
        shape = f"{self.geometry.num_heads} heads, keys of {self.geometry.qk_head_dim}"
        width = self.geometry.latent_width
        boxes = (
            self._tensor("rows", "new latent rows", f"[B, S, {width}]", token=width),
            _operator("W_UK W_UV", self._kv_b()),
            self._keys("cache", "cache: keys and values", self.row_bytes),
            Box("attention", "operator", "attention", shape, "attention"),
        )
        return boxes, _chain(("rows", "W_UK W_UV", "keys", "attention"))

    def _rows(self) -> Box:
        width = self.geometry.latent_width
        shape = f"[B, T, {self.geometry.kv_lora_rank} + {self.geometry.qk_rope_head_dim}]"
        if not self.has_cache:
            return self._tensor("rows", "latent rows", shape, key=width)
        known = None if self.row_bytes is None else Terms(per_key=self.row_bytes)
        return Box("rows", "cache", "cache: latent rows", shape, bytes=known)

    def _keys(self, kind: Kind, title: str, row_bytes: int | None) -> Box:
        geometry = self.geometry
        each = f"{geometry.qk_head_dim} + {geometry.v_head_dim}"
        taken = row_bytes if row_bytes else self.size * geometry.expanded_width
        shape = f"[B, T, {geometry.num_heads} × ({each})]"
        return Box("keys", kind, title, shape, bytes=Terms(per_key=taken))

    def _kv_b(self) -> str:
        geometry = self.geometry
        per_head = geometry.qk_nope_head_dim + geometry.v_head_dim
        return f"{geometry.kv_lora_rank} × {geometry.num_heads}·{per_head}"

    def _tensor(self, name: str, title: str, shape: str, *, token: int = 0, key: int = 0) -> Box:
        numbers = Terms(per_token=token, per_key=key).times(self.size)
        # A width that the graph does not tell is 0 here.
        return Box(name, "tensor", title, shape, bytes=numbers if token or key else None)


def _operator(name: str, shape: str, stage: str | None = None) -> Box:
    return Box(name, "operator", name, shape, name if stage is None else stage)
