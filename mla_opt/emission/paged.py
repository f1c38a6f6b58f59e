"""A latent attention over packed tokens and a cache in blocks, by ONNX Runtime's operator.

    query [1, H, T, C+R] --> [T, H (C+R)] --+
    rows  [1, 1, T, C+R] --> [T, C+R] ------+--> PagedAttention --> [T, H C] --> [1, H, T, C]
    cache [blocks, block size, 1, C+R] -----+          |                               |
                                                       +--> the cache, T rows more     @ W_UV

The operator computes in 16 bits; where the model does not, queries and rows are rounded in front
of it, and its output is widened behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mla_opt.emission.absorbed import Emitted, absorbed_query, projected
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.operator.paged_attention import PagedSignature
from mla_opt.sites import LatentAttentionSite, Operands


class PagedBuilder(Builder, Protocol):
    """A builder of graphs that ONNX Runtime reads."""

    def cast(self, value: Value, dtype: str, name: str) -> Value:
        """The value in a type by NumPy's name; itself where it has that."""

    def paged_attention(
        self, operands: Mapping[str, Value], signature: PagedSignature, name: str
    ) -> tuple[Value, Value]:
        """One ``PagedAttention``: ``[T, H C]``, and the cache with the new rows."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Where the rows of one attention are, and whose the tokens of a call are.

    ``call`` are the inputs of `mla_opt.operator.paged_attention.CALL`, ``dtype`` is what the
    operator computes in, ``around`` the model; ``scale`` is one of each number of a row, where the
    cache holds codes.
    """

    cache: Value
    call: Mapping[str, Value]
    dtype: str
    around: str
    scale: Value | None = None


def emit_paged(
    builder: PagedBuilder,
    site: LatentAttentionSite,
    operands: Operands,
    rows: Value,
    pages: Pages,
) -> Emitted:
    """Emit one site; the output is ``[1, H, T, V]``, or ``[1, T, E]`` under fold-o.

    ``rows`` are the new latent rows ``[1, 1, T, C + R]``.
    """
    assert site.geometry is not None
    heads, rank = site.geometry.num_heads, site.geometry.kv_lora_rank
    width = rank + site.geometry.qk_rope_head_dim
    query = site.query_value = absorbed_query(builder, operands)
    by_token = builder.transpose(query, (0, 2, 1, 3), "query_by_token")
    given = {
        "query": _packed(builder, by_token, heads * width, query, pages, "query_packed"),
        "key": _packed(builder, rows, width, query, pages, "rows_packed"),
        "key_cache": pages.cache,
        **pages.call,
    }
    if pages.scale is not None:
        given["k_scale"] = pages.scale
    signature = PagedSignature(heads, rank, site.scale, pages.scale is not None)
    output, cache = builder.paged_attention(given, signature, "paged_attention")
    wide = builder.cast(output, pages.around, "output_wide")
    split = builder.reshape(wide, builder.integers(1, -1, heads, rank), "output_by_token")
    latent = builder.transpose(split, (0, 2, 1, 3), "output_by_head")
    # without a mask: every token sees itself
    return Emitted(projected(builder, replace(operands, bias=None), latent), (cache,))


def _packed(
    builder: PagedBuilder, value: Value, width: int, like: Value, pages: Pages, name: str
) -> Value:
    """``[1, T, ...]`` of the type of ``like`` as ``[T, width]``, in the operator's type."""
    flat = builder.reshape(value, builder.integers(-1, width), name)
    builder.declare_like(flat, like)
    return builder.cast(flat, pages.dtype, f"{name}_narrow")
