"""One fused operator, as the graph of an optimized model has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mla_opt.sites.cache import CacheLayout


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """One ``LatentAttention``, ``MultiHeadLatentAttention`` or ``PagedAttention`` of a graph.

    Attributes:
        label: its node, for messages.
        query: name of the query.
        shapes: shape of each operand that is there, by the contract's names; ``None`` for a size,
            or for a whole shape, that the graph does not tell.
        dtype: element type of the query, in NumPy's words.
        cache_dtype: element type of the cache; ``None`` where there is none, or it is not known.
    """

    label: str
    query: str
    shapes: Mapping[str, tuple[int | None, ...] | None]
    scale: float
    kv_lora_rank: int
    dtype: str
    cache_dtype: str | None = None

    @property
    def layout(self) -> CacheLayout:
        """How the cache lies that the operator reads; ``rows`` where it reads none."""
        if "past_len" in self.shapes:
            return "static"
        if "block_table" in self.shapes:
            return "paged"
        if self._is_even:
            return "even"
        if "rope_cache" in self.shapes:
            return "split"
        return "packed" if "cache" in self.shapes else "rows"

    @property
    def num_heads(self) -> int | None:
        """H."""
        shape = self.shapes["query"]
        return shape[1] if shape is not None and len(shape) == 4 else None

    @property
    def qk_rope_head_dim(self) -> int | None:
        """R, which is what a row has beyond C."""
        # Beside codes of 8 bits there are not only those dims.
        split = None if self._is_codes else self._width("rope_cache")
        if split is not None:
            return 2 * split - self.kv_lora_rank if self._is_even else split
        # A query before absorption has N dims and not C before its rotary part.
        names = ("latent",) if "kv_b" in self.shapes else ("query", "latent")
        names = names if "rope_cache" in self.shapes else (*names, "cache")
        widths = (self._width(name) for name in names)
        return next((width - self.kv_lora_rank for width in widths if width is not None), None)

    @property
    def _is_codes(self) -> bool:
        return self.cache_dtype in ("int8", "float8_e4m3fn")

    @property
    def _is_even(self) -> bool:
        """Whether its two caches hold halves of rows: else the first is as wide as C."""
        widths = (self._width("cache"), self._width("rope_cache"))
        return (
            not self._is_codes
            and None not in widths
            and widths[0] == widths[1] != self.kv_lora_rank
        )

    def _width(self, name: str) -> int | None:
        shape = self.shapes.get(name)
        return shape[-1] if shape else None
