"""Bring every site into the form that TensorRT has kernels for: one graph a phase.

prefill   a whole prompt into an empty buffer: keys and values are expanded, from the new rows
          alone, for TensorRT's fused attention; the rows are written by TensorScatter
decode    new tokens on what is in the buffer: the operator, for the plugin, where the plugin has
          a kernel for the widths; else standard operators

Both graphs have the same buffers ``[B, 1, M, C + R]`` and read and write them in place. Neither
makes a shape from data, which TensorRT could only do on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.emission.folded import emit_folded
from mla_opt.emission.heads_first import heads_first
from mla_opt.emission.prompt import TensorRTBuilder, can_fuse, emit_prompt
from mla_opt.errors import InputError, PassError
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.kernels.cuda_library import WIDTHS
from mla_opt.passes.fuse_cache_append import adopt, anchor, rows_of
from mla_opt.passes.write_cache_in_place import (
    add_past_len,
    buffer_rows,
    check_counted_by_past_len,
    make_buffer,
)
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class LowerToTensorrt(Pass):
    """Lower every site for one ``phase``.

    Attributes:
        phase: ``decode`` runs after ``write_cache_in_place``, ``prefill`` in its place.
        plugin: whether the operator stays, for the plugin; else standard operators do its work.
        capacity: rows of the buffers, which TensorRT must know.
        plugin_widths: (C, R) that the plugin has kernels for; all other sites get standard
            operators, and a note.
    """

    name: ClassVar[str] = "lower_to_tensorrt"
    phase: Phase = "decode"
    plugin: bool = True
    capacity: int | None = None
    plugin_widths: tuple[tuple[int, int], ...] = WIDTHS

    def requires(self, graph: Graph) -> None:
        """Every cache is appended to by its operator, and its rows are a number."""
        if self.capacity is None:
            raise InputError("TensorRT needs the capacity of the caches: cache 'static:ROWS'")
        for site in graph.sites:
            if site.cache is None or not site.fused or site.form == "none":
                raise InputError(
                    f"{site.name} ({site.form}) does not append to a cache of latent rows, so it"
                    " cannot be lowered for TensorRT"
                )
            if self.phase == "prefill" and site.form != "factored":
                raise PassError(f"{site.name} is folded, so prompts cannot be expanded")
            if self.phase == "decode" and site.cache.past_len is None:
                raise PassError(f"{site.name} has no buffer; run write_cache_in_place first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        if not graph.sites:
            return PassResult()
        notes = self._prefill(graph) if self.phase == "prefill" else self._decode_all(graph)
        return PassResult(len(graph.sites), len(graph.sites), notes=notes)

    def _decode_all(self, graph: Graph) -> tuple[str, ...]:
        notes = [note for site in graph.sites for note in self._decode(graph, site)]
        lacking: dict[tuple[int, int], list[str]] = {}
        for site in graph.sites:
            if self.plugin and _widths(site) not in self.plugin_widths:
                lacking.setdefault(_widths(site), []).append(site.name)
        has = ", ".join(f"{c} and {r}" for c, r in self.plugin_widths)
        for (c, r), (first, *more) in lacking.items():
            names = f"{first} and {len(more)} more" if more else first
            notes.append(
                f"{names}: the plugin has no kernel for C={c} and R={r}, only for {has}; standard"
                " operators do the work"
            )
        return tuple(notes)

    def _decode(self, graph: Graph, site: LatentAttentionSite) -> tuple[str, ...]:
        """Emit a site anew, its products with heads in the place of sequences."""
        by_plugin = self.plugin and _widths(site) in self.plugin_widths
        notes = _fill_gaps(graph, site) if by_plugin else ()
        builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
        assert site.operands is not None
        operands, rows = site.operands, rows_of(site)
        if by_plugin:
            emitted = emit_absorbed(builder, site, operands, rows, heads_first)
        else:
            emitted = emit_folded(cast(TensorRTBuilder, builder), site, operands, rows)
        adopt(graph, site, emitted.values())
        for cache in emitted.caches:
            graph.declare_rows(cache, buffer_rows(self.capacity))
        return notes

    def _prefill(self, graph: Graph) -> tuple[str, ...]:
        check_counted_by_past_len(graph.sites)
        past_len = add_past_len(graph, graph.sites[0])
        for site in graph.sites:
            assert site.cache is not None
            if site.appends:
                make_buffer(graph, site.cache, past_len, lambda: 0, self.capacity)
            self._expand(graph, site, past_len)
        apart = [site.name for site in graph.sites if not can_fuse(site)]
        return (f"no fused attention for {', '.join(apart)}",) if apart else ()

    def _expand(self, graph: Graph, site: LatentAttentionSite, past_len: Value) -> None:
        assert site.operands is not None and site.cache is not None
        builder = cast(TensorRTBuilder, graph.builder(anchor(graph, site), f"{site.name}/mla"))
        (rows,), (past,) = site.cache.new, site.cache.past
        buffer = past if site.appends else None
        emitted = emit_prompt(builder, site, site.operands, rows, buffer, past_len)
        adopt(graph, site, emitted.values())
        for cache in emitted.caches:
            graph.declare_rows(cache, buffer_rows(self.capacity))
        site.prefill, site.query_value = "expanded", None


def _widths(site: LatentAttentionSite) -> tuple[int, int]:
    """C and R of a site."""
    assert site.geometry is not None
    return site.geometry.kv_lora_rank, site.geometry.qk_rope_head_dim


def _fill_gaps(graph: Graph, site: LatentAttentionSite) -> tuple[str, ...]:
    """Give an operator all inputs up to its last one: TensorRT's parser knows no absent ones.

    Raises:
        InputError: the operator reads rows that another has written, and has none of its own.
    """
    operands, cache = site.operands, site.cache
    assert operands is not None and cache is not None
    if not site.appends:
        raise InputError(
            f"{site.name} reads a cache that another attention writes, which the plugin does not;"
            " lower it to standard operators (--no-plugin)"
        )
    if operands.sink is None or operands.bias is not None:
        return ()
    builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
    nothing = builder.scalar_like(0.0, operands.query_nope, "no_bias")
    site.operands = replace(
        operands, bias=builder.reshape(nothing, builder.integers(1), "no_bias_row")
    )
    return (f"{site.name}: a bias of zero before its sinks",)
