"""Conditionals of a PyTorch graph: two graphs of their own, given all that they read.

``torch.cond`` compares what both branches return, sizes and strides, so what comes out is dense.
Compilers know a size in a branch only by what the branch is given, so the plain symbols go in as
well. And Inductor lays out what goes in as it likes, yet compiles the branch for the strides that
were traced; so what the graph computes goes in with one axis, of which there is one layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import fx

from mla_opt.errors import PassError
from mla_opt.graphs.protocol import BranchBody, Builder
from mla_opt.graphs.torch.lifted_program import (
    LiftedProgram,
    expression,
    is_size,
    is_tensor,
    sizes_of,
    symbolic_shape,
)


class Emitter(Protocol):
    """What a conditional asks of the builder that emits it, and of those inside its branches."""

    def inside(self, graph: fx.Graph, name: str, capture: Callable[[fx.Node], fx.Node]) -> Emitter:
        """A builder for the graph of a branch."""

    def flat(self, value: fx.Node) -> fx.Node:
        """A value with one axis."""

    def dense(self, value: fx.Node) -> fx.Node:
        """A value whose layout is its shape's own."""

    def here(self, value: fx.Node) -> fx.Node:
        """What stands for a value in this graph."""

    def shaped(self, value: fx.Node, sizes: Sequence[int | fx.Node]) -> fx.Node:
        """A value in another shape."""

    def axis(self, value: fx.Node, axis: int) -> int | fx.Node:
        """One size of a value."""


class Conditional:
    """Both branches of one conditional, emitted at the place of ``outer``."""

    def __init__(
        self,
        outer: Emitter,
        program: LiftedProgram,
        bodies: tuple[BranchBody, BranchBody],
        name: str,
    ) -> None:
        self._outer = outer
        self._program = program
        self._given: dict[fx.Node, fx.Node] = {}
        self._counts: dict[Any, fx.Node] = {}
        self._branches = [
            _Branch(self, outer, f"{name}/{word}", body)
            for word, body in zip(("then", "else"), bodies)
        ]
        for symbol in self._unbound_symbols():
            node = self._counts.get(symbol) or self._counting(symbol)
            self._given[node] = node

    def given(self, value: fx.Node) -> fx.Node:
        """What the branches are given for a value of the main graph; for a size, once."""
        for size in sizes_of(value) if is_size(value) else ():
            value = self._counts.setdefault(size, value)
        if value not in self._given:
            laid_out = value.op == "call_function" and is_tensor(value)
            self._given[value] = self._outer.flat(value) if laid_out else value
        return self._given[value]

    def sizes(self, value: fx.Node) -> list[int | fx.Node]:
        """Sizes of a value, read in the main graph; what is always equal is read once."""
        return [self._size(value, axis) for axis in range(value.meta["val"].dim())]

    def _size(self, value: fx.Node, axis: int) -> int | fx.Node:
        size = expression(value.meta["val"].shape[axis])
        if isinstance(size, int):
            return size
        if size not in self._counts:
            self._counts[size] = cast(fx.Node, self._outer.axis(value, axis))
        return self._counts[size]

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """All that the branches are given."""
        return tuple(self._given.values())

    def modules(self) -> list[fx.GraphModule]:
        """The branches, each to be called with the operands."""
        return [branch.close(self._given) for branch in self._branches]

    def _unbound_symbols(self) -> list[Any]:
        """Symbols that no single size of an operand stands for."""
        sizes = [size for node in self._given.values() for size in sizes_of(node)]
        bound = {size for size in sizes if size.is_Symbol}
        free = {symbol for size in sizes for symbol in size.free_symbols} - bound
        return sorted(free, key=str)

    def _counting(self, symbol: Any) -> fx.Node:
        """A node that counts what a symbol stands for."""
        for node in self._program.graph.find_nodes(op="placeholder"):
            if is_size(node) and symbol in sizes_of(node):
                return cast(fx.Node, node)
        for node in self._program.inputs:
            for axis, size in enumerate(symbolic_shape(node) or ()):
                if size == symbol:
                    return cast(fx.Node, self._outer.axis(node, axis))
        raise PassError(f"no input of the program has the size {symbol}")


class _Branch:
    """One branch."""

    def __init__(
        self, conditional: Conditional, outer: Emitter, name: str, body: BranchBody
    ) -> None:
        self._conditional = conditional
        self._inner: dict[fx.Node, fx.Node] = {}
        self._graph = fx.Graph()
        self._shaped: dict[fx.Node, fx.Node] = {}
        self._builder = outer.inside(self._graph, name, self._capture)
        outputs = cast(Sequence[fx.Node], body(cast(Builder, self._builder)))
        here = (self._builder.here(output) for output in outputs)
        self._outputs = tuple(self._builder.dense(output) for output in here)

    def _capture(self, value: fx.Node) -> fx.Node:
        """What stands for a value of the main graph: a placeholder, in the value's own shape."""
        if value not in self._shaped:
            given = self._conditional.given(value)
            inner = self._inner[value] = self._placeholder(given)
            if given is not value:
                inner = self._builder.shaped(inner, self._conditional.sizes(value))
            self._shaped[value] = inner
        return self._shaped[value]

    def _placeholder(self, given: fx.Node) -> fx.Node:
        node = self._graph.placeholder(given.name)
        node.meta["val"] = given.meta["val"]
        return node

    def close(self, given: dict[fx.Node, fx.Node]) -> fx.GraphModule:
        """The branch as a module that is called with all of ``given``, in that order."""
        body = next(node for node in self._graph.nodes if node.op != "placeholder")
        for value, operand in given.items():
            if value not in self._inner:
                self._inner[value] = self._placeholder(operand)
            body.prepend(self._inner[value])
        self._graph.output(self._outputs)
        return fx.GraphModule(torch.nn.Module(), self._graph)
