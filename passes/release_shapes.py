"""Let nothing be computed only for its shape to be read.

Exporters compute masks and reshape targets from the shapes of keys and scores. Where those are no
longer needed, their shape is put together from the shapes of inputs instead; otherwise the runtime
would still expand every key to count its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from mla_opt.graphs.protocol import Binding, Graph, Node, Size, Value
from mla_opt.pipeline import Pass, PassResult

EXAMPLES = ((2, 4, 3), (3, 7, 5))
"""Batch, query length and past length of two examples: a size that agrees in both is the same."""

Source = tuple[tuple[tuple[Value, int], ...], tuple[int, ...]]
"""Axes whose sizes add up, and what they add up to in the examples."""


@dataclass(frozen=True)
class ReleaseShapes(Pass):
    """Redirect every read of a dead value's shape, where its sizes are those of something alive."""

    name: ClassVar[str] = "release_shapes"

    def run(self, graph: Graph) -> PassResult:
        """Rewrite until no live shape hangs on a dead value, or none that can be told."""
        alive = _alive(graph)
        readers = [
            node for node in graph.nodes() if node in alive and _reads_dead(graph, node, alive)
        ]
        if not readers:
            return PassResult()
        graph.forget_shapes()
        bindings = [graph.nearest_binding(*example) for example in EXAMPLES]
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


def _reads_dead(graph: Graph, node: Node, alive: set[Node]) -> bool:
    if not graph.is_shape_reader(node):
        return False
    producer = graph.producer(graph.reads(node)[0])
    return producer is not None and producer not in alive


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
    totals = {tuple(query + past for _, query, past in EXAMPLES)}
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
    return next((axes for axes, example in sources if example == sizes), None)
