"""Let nothing be computed only for its shape to be read.

Exporters compute masks and reshape targets from the shapes of keys, scores and caches. Where those
are no longer needed, or are about to be made by the operator, their shape is put together from the
shapes of inputs instead; otherwise the runtime would still expand every key to count its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, FAR, Binding, Graph, Size
from mla_opt.handles import Node, Value
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite

Source = tuple[tuple[int | tuple[Value, int | None], ...], tuple[int, ...]]
"""Axes and numbers that add up, and what they add up to in the examples."""


@dataclass(frozen=True)
class ReleaseShapes(Pass):
    """Redirect every read of a dead value's shape, where its sizes are those of something alive."""

    name: ClassVar[str] = "release_shapes"

    def run(self, graph: Graph) -> PassResult:
        """Rewrite until no live shape hangs on a dead value, or none that can be told."""
        if not graph.sites:
            return PassResult()
        readers = _Cones.of(graph).hindering(graph)
        if not readers:
            return PassResult()
        bindings = [graph.nearest_binding(*sizes) for sizes in (EXAMPLE, FAR)]
        sources = _sources(graph, bindings)
        released = 0
        for reader in readers:
            sizes = _sizes(graph.reads(reader)[0], bindings, sources)
            if sizes is not None:
                graph.replace_shape(reader, sizes)
                released += 1
        kept = len(readers) - released
        notes = (f"{kept} shapes still hang on values that nothing else needs",) if kept else ()
        return PassResult(matched=len(readers), rewritten=released, notes=notes)


@dataclass(frozen=True, slots=True)
class _Cones:
    """What the outputs still need, what the sites made, and the caches that operators will make."""

    alive: set[Node]
    cores: set[Node]
    joined: set[Value]

    @classmethod
    def of(cls, graph: Graph) -> _Cones:
        cores = {node for site in graph.sites for node in _replaced(site)}
        joined = {each for site in graph.sites if site.cache for each in site.cache.joined}
        return cls(_alive(graph), cores, joined)

    def hindering(self, graph: Graph) -> list[Node]:
        """Live shape readers of what is dead, or of what the operator will make.

        The operator reads masks; a mask made from the shape of its own output would be a cycle.
        """
        return [
            node
            for node in graph.nodes()
            if node in self.alive
            and graph.is_shape_reader(node)
            and self._is_going(graph, graph.reads(node)[0])
        ]

    def _is_going(self, graph: Graph, value: Value) -> bool:
        """Whether a value is dead because of a site, or part of a cache of one."""
        return self._died_with_site(graph, value) or _is_part_of(graph, value, self.joined)

    def _died_with_site(self, graph: Graph, value: Value) -> bool:
        """What exporters compute only for its shape, with no site in it, is not ours to change."""
        pending, seen = [graph.producer(value)], set()
        while pending:
            node = pending.pop()
            if node is None or node in self.alive or node in seen:
                continue
            if node in self.cores:
                return True
            seen.add(node)
            pending.extend(graph.producer(each) for each in graph.reads(node))
        return False


def _replaced(site: LatentAttentionSite) -> tuple[Node, ...]:
    """Nodes that a rewritten site does not need."""
    projection = () if site.projection is None else (site.projection,)
    return (*projection, *site.core.nodes)


def _is_part_of(graph: Graph, value: Value, wholes: set[Value]) -> bool:
    """Whether a value is one of ``wholes``, or nothing but elements of one, moved."""
    while value not in wholes:
        node = graph.producer(value)
        operation = None if node is None else graph.operation(node)
        if not isinstance(operation, op.Layout) or len(operation.data) != 1:
            return False
        (value,) = operation.data
    return True


def _alive(graph: Graph) -> set[Node]:
    """Nodes that the outputs need, when reading a shape needs nothing."""
    alive: set[Node] = set()
    pending = [graph.producer(value) for value in graph.returned()]
    while pending:
        node = pending.pop()
        if node is None or node in alive:
            continue
        alive.add(node)
        if not graph.is_shape_reader(node):
            pending.extend(graph.producer(value) for value in graph.reads(node))
    return alive


def _sources(graph: Graph, bindings: Sequence[Binding]) -> list[Source]:
    """Axes of inputs with their sizes in the examples, then past and new tokens together.

    A total that an input declares, such as a mask's, is not taken: past and new tokens are what the
    rows are counted by.
    """
    axes = [
        ((value, axis), sizes)
        for value in graph.taken()
        for axis, sizes in enumerate(_by_axis(value, bindings))
        if len(set(sizes)) > 1
    ]
    totals = {tuple(query + past for _, query, past in (b.sizes for b in bindings))}
    single: list[Source] = [((axis,), sizes) for axis, sizes in axes if sizes not in totals]
    sums: list[Source] = [
        ((first, second), tuple(map(sum, zip(of_first, of_second))))
        for (first, of_first), (second, of_second) in combinations(axes, 2)
    ]
    return [*single, *(source for source in sums if source[1] in totals)]


def _by_axis(value: Value, bindings: Sequence[Binding]) -> list[tuple[int, ...]]:
    """Sizes of each axis over the examples; nothing where one of them is unknown."""
    shapes = [binding.shape(value) for binding in bindings]
    known = [shape for shape in shapes if shape is not None]
    return list(zip(*known)) if len(known) == len(shapes) else []


def _sizes(
    value: Value, bindings: Sequence[Binding], sources: Sequence[Source]
) -> list[Size] | None:
    if any(binding.shape(value) is None for binding in bindings):
        return None
    found = [_size(sizes, sources) for sizes in _by_axis(value, bindings)]
    sizes = [size for size in found if size is not None]
    return sizes if len(sizes) == len(found) else None


def _size(sizes: tuple[int, ...], sources: Sequence[Source]) -> Size | None:
    if len(set(sizes)) == 1:
        return sizes[0]
    for axes, example in sources:
        if example == sizes:
            return axes
    with_rest = (_with_constant(sizes, source) for source in sources)
    return next((size for size in with_rest if size is not None), None)


def _with_constant(sizes: tuple[int, ...], source: Source) -> Size | None:
    """An axis and a number that makes up the rest, such as a past of fixed length."""
    axes, example = source
    rests = {size - part for size, part in zip(sizes, example)}
    (rest,) = rests if len(rests) == 1 else (0,)
    return (*axes, rest) if rest > 0 else None
