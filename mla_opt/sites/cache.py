"""The cache of one attention: as the model came with it, and as it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_opt.handles import Array, Node, Value
from mla_opt.sites.layout import Layout

CacheFamily = Literal["latent", "expanded", "none"]
CacheLayout = Literal["expanded", "split", "packed", "even", "static", "paged", "rows"]


@dataclass(frozen=True, slots=True)
class Run:
    """New rows of each sequence one behind the other in a buffer, and each its query's own.

    ``start [B]`` int32 is where they begin, ``places [B, S]`` where they go, and
    ``behind [B, 1, S, M]`` true for the rows after a query's own.
    """

    start: Value
    places: Value
    behind: Value


@dataclass(frozen=True, slots=True)
class Positions:
    """Where new rows are written in a buffer: what the axes of ``index`` are, ``layout`` says.

    They are tokens, sequences, or have one place that serves all. With ``run`` it holds the place
    of the first row alone; the others follow behind that. ``count`` says how many rows of the
    buffer are read, from its front; ``None``: all. With ``first`` the buffer has room for more
    sequences than those of the call, which are its first. ``room`` is a value and the axis of it
    that counts rows of zeros behind those of the past, which are put there first: the buffer grows
    by them. ``known`` is what is known besides where each sequence has a start of its own.
    """

    index: Value
    layout: Layout
    run: bool = False
    count: Value | None = None
    first: bool = False
    room: tuple[Value, int] | None = None
    known: Run | None = None


@dataclass(frozen=True, slots=True)
class CachedTensor:
    """One tensor that the model caches: ``joined = [past | new]`` along the tokens.

    With ``positions`` it is a buffer instead: ``written`` is ``past`` with new rows in those
    places, and ``joined`` what is read of that.

    Attributes:
        past: the input of the graph, of the axes ``past_layout``.
        past_rows: what is joined with new rows: the input, moved to the axes ``layout``.
        new: what this call adds, of the axes ``new_layout``: the same, of another size.
        order: which axis of ``new`` each axis of ``joined`` is, where those are not the same.
        joined: both, of the same axes.
        written: all of what they were joined to.
        output: what the graph returns of them, all of it.
        output_layout: the axes of that, as far as they are sequences or tokens.
        others: nodes that read rows of the past beside the one that joins them; ``None`` if none
            does, and no output is the past as it came.
        places: for each place of the width the number of the latent row ``[c_kv | k_pe]`` that it
            holds; empty for keys and values of every head.
    """

    past: Value
    past_rows: Value
    new: Value
    joined: Value
    written: Value
    output: Value
    layout: Layout
    new_layout: Layout
    past_layout: Layout
    output_layout: Layout
    others: tuple[Node, ...] | None = None
    places: tuple[int, ...] = ()
    positions: Positions | None = None
    order: tuple[int, ...] = ()

    def like_joined(self, new: Array) -> Array:
        """New rows with the axes of ``joined``."""
        return new.transpose(self.order) if self.order else new

    @property
    def axis(self) -> int:
        """Where the tokens are in ``layout``."""
        return next(
            place
            for place, axis in enumerate(self.layout)
            if any(part.role == "key" for part in axis)
        )


@dataclass(slots=True)
class CacheSlots:
    """The cache of one site: graph inputs, new rows and graph outputs, a pair for split caches.

    ``past`` are inputs of the graph, ``new`` the rows that this call adds, ``joined`` both, one
    behind the other. Each has one entry (packed) or two (``c_kv`` and ``k_pe``); of halves (even)
    the new rows have one, which is not cut yet. A buffer has
    ``past_len`` valid rows before the call and ``written`` after it, of ``capacity`` if that is
    fixed. ``kept_as`` names the type of 8 or 16 bits of a cache whose new rows have more bits;
    with 8 bits the codes of a row and what is beside them take ``row_bytes``. ``own`` are
    the tensors that the model came with. With ``positions`` they are buffers that standard
    operators write, as the model did; ``returned`` is all of them then, which may be more than is
    read. ``start [B]`` is where the model itself says that new rows begin in a buffer. Of blocks
    of codes, ``scale`` has the scales. Sites that read the same rows share one of these.
    """

    layout: CacheLayout
    past: tuple[Value, ...]
    new: tuple[Value, ...]
    joined: tuple[Value, ...]
    past_len: Value | None = None
    written: Value | None = None
    capacity: int | None = None
    kept_as: str | None = None
    row_bytes: int | None = None
    own: bool = False
    positions: Positions | None = None
    start: Value | None = None
    scale: Value | None = None
    returned: tuple[Value, ...] = ()

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The outputs of the graph."""
        return self.returned or self.joined


@dataclass(frozen=True, slots=True)
class Ends:
    """Names of the inputs and outputs that hold one state of one model, pairwise."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def as_dict(self) -> dict[str, list[str]]:
        """Return the names as lists, for JSON."""
        return {"inputs": list(self.inputs), "outputs": list(self.outputs)}
