"""Let nothing be computed only for its shape to be read.

Exporters compute masks and reshape targets from the shapes of keys, scores and caches. Where those
are no longer needed, or are about to be made by the operator, their shape is put together from the
shapes of inputs instead; otherwise the runtime would still expand every key to count its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph, Size
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Node, Value
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite


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
        sources = _Sources.of(graph)
        released = 0
        for reader in readers:
            sizes = sources.sizes(graph, graph.reads(reader)[0])
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
        alive = _alive(graph)
        cores = {node for site in graph.sites for node in _replaced(graph, site, alive)}
        joined = {each for site in graph.sites if site.cache for each in site.cache.joined}
        return cls(alive, cores, joined)

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


def _replaced(graph: Graph, site: LatentAttentionSite, alive: set[Node]) -> set[Node]:
    """Nodes that a rewritten site does not need: its core, and what made keys and values for it."""
    replaced = set(site.core.nodes)
    pending = [graph.producer(value) for value in (site.core.key, site.core.value)]
    while pending:
        node = pending.pop()
        if node is None or node in alive or node in replaced:
            continue
        replaced.add(node)
        pending.extend(graph.producer(value) for value in graph.reads(node))
    return replaced


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


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where each symbol can be read: an axis of an input that is that and nothing else."""

    axes: Mapping[Expression, tuple[Value, int]]

    @classmethod
    def of(cls, graph: Graph) -> _Sources:
        axes: dict[Expression, tuple[Value, int]] = {}
        for value in graph.taken():
            for axis, size in enumerate(graph.sizes(value) or ()):
                if not isinstance(size, int) and size.is_Symbol:
                    axes.setdefault(size, (value, axis))
        return cls(axes)

    def sizes(self, graph: Graph, value: Value) -> list[Size] | None:
        """Every size of a value, put together from what the inputs say; ``None`` if one is not."""
        found = [self._size(size) for size in graph.sizes(value) or (None,)]
        known = [size for size in found if size is not None]
        return known if len(known) == len(found) else None

    def _size(self, size: Expression | None) -> Size | None:
        """A size that is a sum of symbols and a number."""
        if size is None or isinstance(size, int):
            return size
        parts: list[int | tuple[Value, int | None]] = []
        for term, count in size.as_coefficients_dict().items():
            whole = int(count) if count.is_Integer and count > 0 else 0
            if term == 1:
                parts.append(whole)
            elif term in self.axes:
                parts.extend([self.axes[term]] * whole)
            if not whole or (term != 1 and term not in self.axes):
                return None
        return tuple(parts)
