"""A model over packed tokens, driven by padded calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_opt.graphs.interface.dims import Port
from mla_opt.graphs.interface.feeds import Bools
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.operator.paged_attention import CODES
from mla_opt.verification.breakable import Breakable
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.onnx.breaking import BreakableOnnx
from mla_opt.verification.onnx.paged.outline import outline, scales
from mla_opt.verification.onnx.paged.packing import PackedCall
from mla_opt.verification.onnx.paged.stand_in import with_exact_rows, with_stand_in
from mla_opt.verification.onnx.sessions import OpenModel, Session
from mla_opt.verification.running import RunError, Runnable

Array = npt.NDArray[Any]

ROOM = 2.0
"""Later rows are larger than those that scales are chosen by: what is beyond a scale is cut off."""

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


@dataclass(frozen=True)
class PagedModel:
    """A model over packed tokens that looks like one over padded ones; ``inner`` is as it is."""

    inner: OpenModel

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.inner.label

    @cached_property
    def model(self) -> ir.Model:
        """What it looks like."""
        return outline(self.inner.model)

    @property
    def narrow(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.inner.narrow

    def twin(self, wide: bool = False, rows: bool = False) -> PagedModel:
        """The model without roundings: itself where there are none."""
        twin = self.inner.twin(wide)
        exact = with_exact_rows(twin.model) if rows else twin.model
        if exact is not twin.model:
            twin = replace(twin, model=exact, path=None)
        return self if twin is self.inner else PagedModel(twin)

    def with_weights_of(self, other: Runnable) -> tuple[PagedModel, int]:
        """The model with the layers that are quantized in the other, and how many those are."""
        inner, count = self.inner.with_weights_of(other)
        return (PagedModel(inner), count) if count else (self, 0)

    def breakable(self) -> BreakableOnnx:
        """The model, to be copied and broken."""
        return self.inner.breakable()

    def broken(self, label: str, model: Breakable) -> PagedModel:
        """A broken copy, to be run."""
        return PagedModel(self.inner.broken(label, model))

    def session(self, optimized: bool = True) -> PagedSession:
        """Load it, with standard operators in the place of PagedAttention."""
        model, changes = self.inner.model, InterfaceMap.of(self.inner.model)
        runs = replace(self.inner, model=with_stand_in(model), path=None)
        kinds = {value.name or "": value.dtype for value in model.graph.inputs}
        caches = {
            state.optimized.inputs[0]: _Cache(
                state.optimized.outputs[0], _numpy(kinds[state.optimized.inputs[0]])
            )
            for state in changes.states
        }
        ranks = {v.name or "": len(v.shape) for v in model.graph.inputs if v.shape is not None}
        mask = ModelInterface.of(self.model).attention_mask
        told = mask is not None and mask.name in {each.name for each in changes.dropped}
        session = PagedSession(runs.session(optimized), caches, ranks, mask if told else None)
        for scale, cache in scales(model).items():
            session.scales[scale] = cache
        if session.scales:
            session.exact = PagedModel(replace(runs, model=with_exact_rows(model))).session()
        return session


@dataclass(frozen=True, slots=True)
class _Cache:
    """The output of one cache, and the type of its blocks."""

    output: str
    dtype: np.dtype[Any]

    @property
    def largest(self) -> float | None:
        """The largest code; ``None`` where it holds none."""
        return _LARGEST[self.dtype.name] if self.dtype.name in CODES else None


def _numpy(kind: ir.DataType | None) -> np.dtype[Any]:
    return np.dtype((ir.DataType.FLOAT if kind is None else kind).numpy())


@dataclass
class PagedSession:
    """A loaded model that packs what it is fed, and pads what it returns.

    Scales of codes follow from the rows of the first call, as one would calibrate them, with room
    for what is twice as large: ``exact`` is the model without codes, which tells those rows.

    Attributes:
        ranks: number of axes of each input.
        mask: the input of the original that tells which tokens are padding, if it has one.
        scales: inputs with scales, and the cache that each is for.
    """

    native: Session
    caches: Mapping[str, _Cache]
    ranks: Mapping[str, int]
    mask: Port | None
    scales: dict[str, str] = field(default_factory=dict)
    exact: PagedSession | None = None
    chosen: dict[str, Array] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.native.label

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises `RunError`."""
        call = self._call(feeds)
        if self.exact is not None and (not self.chosen or self._begins(feeds)):
            self._calibrate(self.exact.run(feeds))
        given = {**call.feeds(), **self.chosen}
        for name, value in feeds.items():
            if name in self.caches:
                given[name] = self._blocks(call, name, value)
            elif name in self.ranks:
                given[name] = self._packed(call, value, self.ranks[name])
        produced = self.native.run(given)
        states = {cache.output for cache in self.caches.values()}
        return {
            name: call.rows_of(value) if name in states else call.padded(value[0])
            for name, value in produced.items()
        }

    def _call(self, feeds: Mapping[str, Array]) -> PackedCall:
        past = next(value.shape[2] for name, value in feeds.items() if name in self.caches)
        batch, new = self._sizes(feeds)
        valid: Bools = np.ones((batch, past + new), np.bool_)
        if self.mask is not None:
            told = feeds[self.mask.name].astype(np.bool_) != bool(self.mask.hides)
            valid = np.broadcast_to(told, valid.shape)
        if not valid[:, past:].any():
            raise RunError(f"the {self.label} model is given padding only")
        return PackedCall.of(valid, new)

    def _sizes(self, feeds: Mapping[str, Array]) -> tuple[int, int]:
        tokens = [v for n, v in feeds.items() if n in self.ranks and n not in self.caches]
        first = next(value for value in tokens if value.ndim >= 2)
        return first.shape[0], first.shape[1]

    def _packed(self, call: PackedCall, value: Array, rank: int) -> Array:
        """``[B, S, ...]`` as ``[1, T, ...]``, or as ``[T]``; what has no tokens as it is."""
        if value.ndim < 2:
            return value
        packed = call.packed(value)
        return packed if rank < value.ndim else packed[None]

    def _begins(self, feeds: Mapping[str, Array]) -> bool:
        """Whether the past is none, or one that was made up: no codes of ours."""
        return any(
            feeds[name].dtype != cache.dtype or not feeds[name].size
            for name, cache in self.caches.items()
        )

    def _calibrate(self, produced: Mapping[str, Array]) -> None:
        for scale, name in self.scales.items():
            cache = self.caches[name]
            rows = produced[cache.output].astype(np.float32)
            largest = ROOM * np.abs(rows).max(axis=(0, 1, 2))
            self.chosen[scale] = np.maximum(largest / (cache.largest or 1.0), 1e-6)[None, None]

    def _blocks(self, call: PackedCall, name: str, past: Array) -> Array:
        cache = self.caches[name]
        if cache.largest is not None and past.dtype != cache.dtype:
            scale = next(self.chosen[each] for each, of in self.scales.items() if of == name)
            steps = np.clip(past.astype(np.float32) / scale, -cache.largest, cache.largest)
            past = np.rint(steps) if cache.dtype.name == "int8" else steps
        return call.blocks_of(past, cache.dtype)
