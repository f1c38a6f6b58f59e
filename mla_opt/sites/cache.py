"""The cache of one attention: as the model came with it, and as it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_opt.handles import Value
from mla_opt.sites.layout import Layout

CacheFamily = Literal["latent", "expanded", "none"]
CacheLayout = Literal["expanded", "split", "packed", "static", "rows"]


@dataclass(frozen=True, slots=True)
class PastConcat:
    """A cache of expanded rows: ``joined = [past | new]`` with ``past`` an input of the graph.

    They are joined along ``axis``; ``layout`` says what all axes are.
    """

    past: Value
    new: Value
    joined: Value
    axis: int
    layout: Layout = ()


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


@dataclass(frozen=True, slots=True)
class Ends:
    """Names of the inputs and outputs that hold one state of one model, pairwise."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def as_dict(self) -> dict[str, list[str]]:
        """Return the names as lists, for JSON."""
        return {"inputs": list(self.inputs), "outputs": list(self.outputs)}
