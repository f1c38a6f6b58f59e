"""Edits of the nodes of one ``onnx_ir.Model``: what takes a value's place, and what goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import onnx_ir as ir
from onnx_ir.passes import common

from mla_opt.aside import Aside
from mla_opt.errors import InputError
from mla_opt.graphs.bindings import Bindings
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.graphs.onnx.binding import OnnxBinding
from mla_opt.graphs.onnx.builder import OnnxBuilder
from mla_opt.graphs.onnx.unread import (
    is_needed,
    release_captured,
    remove_dead_nodes,
    remove_unread_tensors,
)
from mla_opt.handles import Array
from mla_opt.operator import contract
from mla_opt.operator.onnx.body_style import BodyStyle
from mla_opt.operator.onnx.node import settle

_IR_VERSION_OF_FUNCTIONS = 8


class Edits(Bindings[OnnxBinding]):
    """The edits of a graph that leave its inputs and outputs what they are."""

    def __init__(self, model: ir.Model, style: BodyStyle) -> None:
        self.model = model
        self._style = style
        self._aside = Aside()

    @cached_property
    def interface(self) -> ModelInterface:
        """What the model's inputs and outputs are for, as the file declared them."""
        return ModelInterface.of(self.model)

    @cached_property
    def _names(self) -> set[str]:
        """Every name in use, so that new ones can be told apart."""
        return (
            {
                name
                for item in ir.traversal.RecursiveGraphIterator(self.model.graph)
                for name in (item.name, *(value.name for value in item.outputs))
                if name is not None
            }
            | {value.name for value in self.model.graph.inputs if value.name is not None}
            | set(self.model.graph.initializers)
        )

    def operands(self, node: ir.Node) -> Sequence[ir.Value]:
        """What the node reads."""
        return tuple(value for value in node.inputs if value is not None)

    def reads(self, node: ir.Node) -> Sequence[ir.Value]:
        """Operands, and what the branches of a conditional read of this graph."""
        branches = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        captured = [
            value
            for branch in branches
            for inner in branch.all_nodes()
            for value in inner.inputs
            if value is not None and value.graph is self.model.graph
        ]
        returned = [
            value
            for branch in branches
            for value in branch.outputs
            if value.graph is self.model.graph
        ]
        return (*self.operands(node), *captured, *returned)

    def keep_aside(self, array: Array) -> Array:
        """The same array; large ones are kept in a file once there are many."""
        return self._aside.keep(array)

    def let_go(self) -> None:
        """Give back the memory of what was read of that file."""
        self._aside.let_go()

    def builder(self, before: ir.Node, prefix: str) -> OnnxBuilder:
        """A builder that emits in front of ``before``."""
        return OnnxBuilder(
            self.model, before, prefix, self._names, style=self._style, aside=self._aside
        )

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader and the graph outputs read ``new``, which takes over ``old``'s name.

        An output keeps the name that callers know it by.
        """
        known = new.is_graph_output() and not old.is_graph_output()
        name = None if known else old.name
        if old.is_graph_output():
            new.shape = old.shape if old.shape is not None else new.shape
            take_over(new, old)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if name is not None and new.producer() is not None:
            old.name = self._retired(name)
            new.name = name

    def redirect(self, old: ir.Value, new: ir.Value) -> bool:
        """Let every reader of ``old`` read ``new``; outputs and names stay."""
        uses = tuple(old.uses())
        for use in uses:
            use.node.replace_input_with(use.idx, new)
        return bool(uses)

    def remove(self, node: ir.Node) -> None:
        """Remove a node whose results nobody reads, and what was made for it alone."""
        pending = [node]
        while pending:
            each = pending.pop()
            if each.graph is None or is_needed(each):
                continue
            sources = [value.producer() for value in self.reads(each)]
            release_captured(each)
            each.graph.remove(each, safe=True)
            pending.extend(source for source in sources if source is not None)

    def _retired(self, name: str | None) -> str:
        """A name, not in use, for a value whose own name another has taken over."""
        retired, count = f"{name}/replaced", 1
        while retired in self._names:
            count += 1
            retired = f"{name}/replaced_{count}"
        self._names.add(retired)
        return retired

    # Tidying

    def inline(self, domain: str) -> int:
        """Put the bodies of a domain's functions in place of their calls."""
        self.prune()
        before = len(self.model.functions)
        common.InlinePass(criteria=lambda function: function.domain == domain)(self.model)
        self.model.opset_imports.pop(domain, None)
        return before - len(self.model.functions)

    def prune(self) -> int:
        """Sort the nodes; drop nodes, stored tensors and functions that nothing reads.

        Raises:
            InputError: a node would read what is made of its own result.
        """
        before = len(self.model.graph)
        try:
            self.model.graph.sort()
        except ValueError as error:
            raise InputError(
                "an attention would read what is made of its own result, such as a mask made from"
                " the shape of its keys in a way that is not known; make masks from the inputs"
            ) from error
        remove_dead_nodes(self.model.graph)
        remove_unread_tensors(self.model.graph)
        common.RemoveUnusedFunctionsPass()(self.model)  # type: ignore[no-untyped-call]
        return before - len(self.model.graph)

    def _all_nodes(self) -> Iterator[ir.Node]:
        """Nodes of the main graph and of all branches."""
        return iter(ir.traversal.RecursiveGraphIterator(self.model.graph))

    def settle_functions(self) -> None:
        """Give each body its name; import the operator's domain only if it is used."""
        settle(self.model)
        ours = [key for key in self.model.functions if key[0] == contract.DOMAIN]
        if not ours and not any(node.domain == contract.DOMAIN for node in self._all_nodes()):
            self.model.opset_imports.pop(contract.DOMAIN, None)
        if self.model.functions:
            self.model.ir_version = max(self.model.ir_version, _IR_VERSION_OF_FUNCTIONS)


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Give an output what the file said of the one before it: type, metadata, documentation."""
    if new.dtype is None and old.dtype is not None:
        new.dtype = old.dtype
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
