"""Taking the rounding of activations out of a graph, and putting it back where it is to stay.

What is taken out is kept: its nodes leave the graph, with what they read noted, and so are those
that read the rounded numbers. It is put back for those of them that are still there by then and
still read the same; whatever came in the place of the others reads numbers that are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from mla_opt.graphs.onnx.quantization.rules import RULES
from mla_opt.graphs.onnx.quantization.unrounding import MOVES, Unrounded, Unrounding

_Inputs = tuple[ir.Value | None, ...]


@dataclass(frozen=True, slots=True)
class Rounding:
    """One place where activations were rounded.

    Attributes:
        rounded: what was read.
        real: what is read in its place.
        reads: who read it: nodes, and which of their operands it was.
        made: what was made to have ``real``, and what that read.
        names: of both, where the rounded one was an output of the graph; else empty.
    """

    rounded: ir.Value
    real: ir.Value
    reads: tuple[tuple[ir.Node, int], ...]
    made: tuple[tuple[ir.Node, _Inputs], ...] = ()
    names: tuple[str | None, ...] = ()

    @property
    def readers(self) -> tuple[ir.Node, ...]:
        """The nodes that read the rounded numbers."""
        return tuple(node for node, _ in self.reads)

    def keep_name(self) -> None:
        """Call what was made in the place of a rounded number as that was called, for good."""
        if self.made and not self.names and self.rounded.name is not None:
            self.rounded.name, self.real.name = f"{self.rounded.name}/rounded", self.rounded.name


@dataclass(slots=True)
class Roundings:
    """All that was taken out of one model."""

    taken: list[Rounding] = field(default_factory=list)
    _parked: dict[ir.Node, tuple[ir.Graph, _Inputs]] = field(default_factory=dict)
    _known: set[ir.Node] = field(default_factory=set)

    @classmethod
    def out_of(cls, model: ir.Model) -> Roundings:
        """Take every rounding of activations out of a model, branches included."""
        nodes = tuple(ir.traversal.RecursiveGraphIterator(model.graph))
        found, state = cls(), Unrounding(RULES, _names(model, nodes))
        for node in nodes:
            each = state.visit(node)
            if each is not None:
                found.taken.append(_redirected(each))
        found._park([each.rounded.producer() for each in found.taken])
        for node in reversed(state.made):
            if node.graph is not None and not _is_read(node):
                node.graph.remove(node, safe=True)
        made = frozenset(state.made)
        found.taken = [replace(each, made=_made_for(each.real, made)) for each in found.taken]
        found._known = {*ir.traversal.RecursiveGraphIterator(model.graph), *found._parked}
        return found

    def put_back(self, rounding: Rounding) -> bool:
        """Round again for those who read it, as far as they are there; was there anybody?"""
        if any(
            node.graph is None or tuple(node.inputs) != inputs for node, inputs in rounding.made
        ):
            return False
        real, rounded = rounding.real, rounding.rounded
        reads = rounding.reads if not rounding.made else _reads(real)
        left = [(n, i) for n, i in reads if n.graph is not None and n.inputs[i] is real]
        maker = rounded.producer()
        if maker is not None and maker.op_type == "DequantizeLinear":
            left = [(node, place) for node, place in left if not self._reaches_new(node)]
        returned = bool(rounding.names) and real.is_graph_output()
        if not left and not returned:
            return False
        self._revive(rounded)
        for node, place in left:
            node.replace_input_with(place, rounded)
        if returned:
            _return(rounded, real)
            rounded.name, real.name = rounding.names
        return True

    def _reaches_new(self, node: ir.Node) -> bool:
        """Whether what a node reads gets as it is, but for its order, to what was rewritten.

        That reads floating point. Besides, ONNX Runtime 1.32 aborts where it moves a
        DequantizeLinear to a value that a branch of an If captures.
        """
        pending, seen = [node], {node}
        while pending:
            each = pending.pop()
            if each not in self._known:
                return True
            if each.op_type in MOVES:
                ahead = {n for value in each.outputs for n in value.consumers()} - seen
                seen |= ahead
                pending.extend(ahead)
        return False

    def _park(self, nodes: Iterable[ir.Node | None]) -> None:
        """Remove nodes that nothing reads any more, and those that only they read."""
        pending = [node for node in nodes if node is not None]
        while pending:
            node = pending.pop()
            if node.graph is None or _is_read(node):
                continue
            assert isinstance(node.graph, ir.Graph)
            self._parked[node] = node.graph, tuple(node.inputs)
            makers = [None if value is None else value.producer() for value in node.inputs]
            node.graph.remove(node, safe=True)
            pending.extend(maker for maker in makers if maker is not None)

    def _revive(self, value: ir.Value) -> None:
        """Put what makes a value back into its graph; the order is settled by `sort`."""
        pending = [value]
        while pending:
            each = pending.pop()
            node = each.producer()
            if node is None or node not in self._parked:
                continue
            graph, inputs = self._parked.pop(node)
            for place, read in enumerate(inputs):
                node.replace_input_with(place, read)
                if read is not None and _was_dropped(read):
                    graph.register_initializer(read)
            graph.append(node)
            pending.extend(read for read in inputs if read is not None)


def _names(model: ir.Model, nodes: Iterable[ir.Node]) -> Iterator[str | None]:
    """Every name in use."""
    for graph in model.graphs():
        yield from (value.name for value in graph.inputs)
        yield from graph.initializers
    for node in nodes:
        yield node.name
        yield from (value.name for value in node.outputs)


def _redirected(each: Unrounded) -> Rounding:
    """Let all who read rounded numbers read those that are not; an output keeps its name."""
    rounded, real = each.rounded, each.real
    reads = _reads(rounded)
    names: tuple[str | None, ...] = ()
    if rounded.is_graph_output():
        real = _able_to_be_output(real, rounded)
        names = rounded.name, real.name
        _return(real, rounded)
        rounded.name, real.name = f"{rounded.name}/rounded", rounded.name
    if real.dtype is None and rounded.dtype is not None:
        real.dtype = rounded.dtype
    for node, place in reads:
        node.replace_input_with(place, real)
    return Rounding(rounded, real, reads, names=names)


def _made_for(real: ir.Value, made: frozenset[ir.Node]) -> tuple[tuple[ir.Node, _Inputs], ...]:
    """The new nodes that a number is computed by, and what they read."""
    found: dict[ir.Node, _Inputs] = {}
    pending = [real.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node in made and node not in found:
            found[node] = tuple(node.inputs)
            pending.extend(None if each is None else each.producer() for each in node.inputs)
    return tuple(found.items())


def _able_to_be_output(real: ir.Value, rounded: ir.Value) -> ir.Value:
    """The value itself, if it can have another name; else one that is all but in name the same."""
    maker, place = real.producer(), rounded.producer()
    assert place is not None
    owner = place.graph
    assert owner is not None
    if maker is not None and maker.graph is owner and not real.is_graph_output():
        return real
    node = ir.node("Identity", [real])
    node.outputs[0].name = f"{rounded.name}/unrounded"
    owner.insert_before(place, node)
    return node.outputs[0]


def _return(new: ir.Value, old: ir.Value) -> None:
    """Return one value where another was returned, as what the file says of that."""
    new.shape = old.shape if old.shape is not None else new.shape
    if old.dtype is not None:
        new.dtype = old.dtype
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    graph = old.graph
    assert graph is not None
    for place, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[place] = new


def _is_as_it_was(made: tuple[ir.Node, _Inputs]) -> bool:
    node, inputs = made
    return node.graph is not None and tuple(node.inputs) == inputs


def _was_dropped(value: ir.Value) -> bool:
    """Whether a stored tensor is in no graph any more, as nothing read it for a while."""
    return value.const_value is not None and value.producer() is None and value.graph is None


def _reads(value: ir.Value) -> tuple[tuple[ir.Node, int], ...]:
    return tuple((use.node, use.idx) for use in value.uses())


def _is_read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
