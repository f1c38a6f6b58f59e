"""The graph protocol over torch.fx: reading and in-place rewriting of one lifted program.

A value is the FX node that makes it. Where one node makes several, the ``getitem`` nodes behind it
are its values and no nodes of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from mla_opt.errors import InputError
from mla_opt.graphs import operations as op
from mla_opt.graphs.bindings import Bindings, Shapes, Sizes
from mla_opt.graphs.dependence import depends_on_stored_only
from mla_opt.graphs.interface.interface import KnownStates, ModelInterface
from mla_opt.graphs.protocol import EXAMPLE, Rounding, Size
from mla_opt.graphs.torch.alike import alike, is_random
from mla_opt.graphs.torch.binding import TorchBinding, UnboundError
from mla_opt.graphs.torch.builder import Names, TorchBuilder
from mla_opt.graphs.torch.inlining import inline_operator
from mla_opt.graphs.torch.lifted_program import LiftedProgram, is_real, rename, symbolic_shape
from mla_opt.graphs.torch.no_ops import unchanged
from mla_opt.graphs.torch.operations import read
from mla_opt.graphs.torch.order import drop_dead, in_order
from mla_opt.graphs.torch.reading import operator_name
from mla_opt.graphs.torch.skeleton import skeleton
from mla_opt.graphs.torch.states import take_place, why_it_stays
from mla_opt.graphs.torch.values import Literal, numpy_dtype, torch_dtype
from mla_opt.handles import Array, Value
from mla_opt.operator import contract
from mla_opt.operator.kv_b import KvB
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.drafts import Draft

SMALL = 4096
"""Stored tensors of at most this many elements are read while matching; larger ones are not."""


class TorchGraph(Bindings[TorchBinding]):
    """One `LiftedProgram`, read and rewritten in place."""

    def __init__(self, program: LiftedProgram) -> None:
        self.program = program
        self.sites: list[LatentAttentionSite] = []
        self.drafts: list[Draft] = []
        self.roundings: Sequence[Rounding] = ()
        self.runs_in_threads = False
        self._operations: dict[fx.Node, op.Operation] = {}
        self._constant: dict[fx.Node, bool] = {}
        self._retired: list[fx.Node] = []
        self._names = Names(program)
        self._positions = _places(program)

    @cached_property
    def interface(self) -> ModelInterface:
        """What the program's inputs and outputs are for, as it came."""
        changed = zip(self.program.changed, self.program.returned)
        pairs = {given.name: value.name for given, value in changed if isinstance(value, fx.Node)}
        return ModelInterface.of(skeleton(self.program), KnownStates(pairs))

    # Reading

    def nodes(self) -> Sequence[fx.Node]:
        """All nodes of the graph, producers before consumers."""
        return tuple(node for node in self.program.graph.nodes if _is_node(node))

    def position(self, node: fx.Node) -> int:
        """Place of a node among those that the graph had when it was looked at."""
        return self._positions[node]

    def refresh(self) -> None:
        """Forget what was known of the graph as a whole."""
        self._positions = _places(self.program)
        self._operations.clear()

    def operation(self, node: fx.Node) -> op.Operation:
        """What the node means; read once."""
        known = self._operations.get(node)
        if known is None:
            known = self._operations[node] = read(self, node)
        return known

    def label(self, node: fx.Node) -> str:
        """Name and operator of a node, for messages."""
        return f"{node.name} ({operator_name(node) or node.target})"

    def producer(self, value: Value) -> fx.Node | None:
        """The node that makes the value."""
        if not isinstance(value, fx.Node) or value.op != "call_function":
            return None
        return cast(fx.Node, value.args[0]) if _is_part(value) else value

    def consumers(self, value: fx.Node) -> Sequence[fx.Node]:
        """The nodes that read the value."""
        return tuple(user for user in value.users if _is_node(user))

    def operands(self, node: fx.Node) -> Sequence[fx.Node]:
        """What the node reads."""
        return tuple(node.all_input_nodes)

    def results(self, node: fx.Node) -> Sequence[fx.Node]:
        """What the node makes."""
        parts = [user for user in node.users if _is_part(user)]
        return tuple(sorted(parts, key=lambda part: cast(int, part.args[1]))) or (node,)

    def alike(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether two values are the same in every call: one, or computed alike of the same."""
        return alike(one, other)

    def unchanged(self, node: fx.Node) -> fx.Node | None:
        """The operand that the node returns as it is, at every size; ``None`` where not proved."""
        return unchanged(self, node)

    def packed_rows(self, node: fx.Node) -> Array | None:
        """None: PyTorch's own products take numbers."""
        return None

    def stored_rows(self, rows: Array) -> KvB | None:
        """Programs keep tensors as they are."""
        del rows
        return None

    def scaled_rows(self, rows: Array) -> KvB | None:
        """Programs keep tensors as they are."""
        del rows
        return None

    def factored_rows(self, rows: Array) -> tuple[KvB, Array] | None:
        """Programs keep tensors as they are."""
        del rows
        return None

    def is_input(self, value: Value) -> bool:
        """Whether the value is an input, and not a stored tensor."""
        return isinstance(value, fx.Node) and value in self.program.inputs

    def is_output(self, value: fx.Node) -> bool:
        """Whether the value is an output of the graph."""
        return self.program.output_node in value.users

    def constant(self, value: Value) -> Array | None:
        """Content of a stored tensor, or of one that is made of numbers alone."""
        if isinstance(value, Literal):
            return np.asarray(value.number)
        assert isinstance(value, fx.Node)
        stored = self.program.stored.get(value)
        if stored is None and (value.all_input_nodes or not self.is_constant(value)):
            return None
        return self._computed(value)

    def _computed(self, value: fx.Node) -> Array | None:
        """What a value is that depends on stored tensors only."""
        try:
            (content,) = self.nearest_binding(*EXAMPLE).run([value], {})
        except UnboundError:
            return None
        return content

    def scalar(self, value: fx.Node) -> float | None:
        """The number that a constant of one element holds."""
        shape = symbolic_shape(value)
        if shape is None or any(size != 1 for size in shape):
            return None
        array = self._computed(value) if self.is_constant(value) else None
        return None if array is None else float(array.reshape(-1)[0])

    def is_constant(self, value: Value) -> bool:
        """Whether the value depends on stored tensors only, through any operators."""
        if not isinstance(value, fx.Node):
            return True
        return depends_on_stored_only(
            value, self._constant, self._is_stored, lambda each: each.all_input_nodes
        )

    def _is_stored(self, value: fx.Node) -> bool | None:
        """Whether a value is constant by itself; ``None`` if its operands decide."""
        if value.op == "placeholder":
            return value in self.program.stored
        return False if value.op != "call_function" or is_random(value) else None

    def stored_name(self, value: Value) -> str | None:
        """The attribute path of a stored tensor in its module."""
        stored = self.program.stored.get(cast(fx.Node, value))
        return None if stored is None else stored.name

    def keep_aside(self, array: Array) -> Array:
        """As it is: a program is in memory as a whole."""
        return array

    def let_go(self) -> None:
        """Nothing."""

    def has_content(self) -> bool:
        """Whether no stored tensor lies on the meta device or is an example only."""
        return all(is_real(stored.tensor) for stored in self.program.stored.values())

    # Shapes

    def sizes(self, value: Value) -> tuple[Any, ...] | None:
        """Shape as expressions of the program's own symbols."""
        return () if isinstance(value, Literal) else symbolic_shape(cast(fx.Node, value))

    def example_shape(self, value: Value) -> tuple[int, ...] | None:
        """Shape at a small example of every dynamic dim; ``None`` where it cannot be told."""
        try:
            return self.nearest_binding(*EXAMPLE).shape(cast(fx.Node, value))
        except InputError:
            return None

    def dtype(self, value: fx.Node) -> np.dtype[Any]:
        """Element type."""
        return numpy_dtype(value.meta["val"].dtype)

    def _bound(self, shapes: Shapes, sizes: Sizes) -> TorchBinding:
        return TorchBinding(self.program, shapes, sizes)

    def declared_shape(self, value: fx.Node) -> tuple[int | str | None, ...]:
        """Shape as the program declares it; symbols and expressions are strings."""
        stated = symbolic_shape(value) or ()
        return tuple(size if isinstance(size, int) else str(size) for size in stated)

    # Rewriting

    def builder(self, before: fx.Node, prefix: str) -> TorchBuilder:
        """A builder that emits in front of ``before``."""
        return TorchBuilder(self.program, self.program.graph, before, prefix, self._names)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every reader and the outputs read ``new``; an output takes over ``old``'s name."""
        returned = self.is_output(old)
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        if returned and new.op == "call_function":
            self._hand_over(old, new)

    def redirect(self, old: fx.Node, new: fx.Node) -> bool:
        """Let every reader of ``old`` read ``new``; outputs and names stay."""
        output = self.program.output_node
        return bool(old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not output))

    def remove(self, node: fx.Node) -> None:
        """Remove a node whose results nobody reads, and what was made for it alone."""
        pending = [node]
        while pending:
            each = pending.pop()
            for part in [user for user in each.users if _is_part(user) and not user.users]:
                self.program.graph.erase_node(part)
            if each.op != "call_function" or each.users or (each is not node and each.is_impure()):
                continue
            pending.extend(each.all_input_nodes)
            self.program.graph.erase_node(each)

    def _hand_over(self, old: fx.Node, new: fx.Node) -> None:
        """Call a new output what the old one was called."""
        name = old.name
        rename(old, f"{name}_replaced")
        rename(new, name)

    # The interface

    def taken(self) -> Sequence[fx.Node]:
        """Inputs of the graph."""
        return tuple(self.program.inputs)

    def returned(self) -> Sequence[fx.Node]:
        """Outputs of the graph."""
        return tuple(self.program.outputs)

    def replace_input(
        self,
        old: fx.Node,
        name: str,
        shape: Sequence[int | str | None],
        dtype: str | None = None,
        moved: Mapping[int, int] | None = None,
    ) -> fx.Node:
        """Put another input in the place of ``old``, and redirect those who read its shape."""
        kind = old.meta["val"].dtype if dtype is None else torch_dtype(dtype)
        rename(old, f"{old.name}_replaced")
        with self.program.graph.inserting_before(old):
            new = self.program.graph.placeholder(name)
        rename(new, name)
        new.target = new.name  # what the argument of the generated function is called
        sizes = [self._names.size(dim) for dim in shape]
        new.meta = {**old.meta, "val": self._names.example(sizes, kind, old.meta["val"].device)}
        new.meta.pop("tensor_meta", None)
        self.program.inputs[self.program.inputs.index(old)] = new
        take_place(self.program, old, new)
        self._retired.append(old)
        self._redirect_shape(old, new, moved or {})
        return new

    def why_it_stays(self, value: fx.Node) -> str:
        """Why an input cannot hold something else from now on, in words; empty if it can."""
        return why_it_stays(self.program, value)

    def is_changed(self, value: fx.Node) -> bool:
        """Whether a call changes an input in place."""
        return value in self.program.changed

    def remove_input(
        self, old: fx.Node, like: fx.Node, moved: Mapping[int, int] | None = None
    ) -> None:
        """Remove an input, and redirect those who read its shape."""
        self.program.inputs.remove(old)
        self.program.changed.pop(old, None)
        self._retired.append(old)
        self._redirect_shape(old, like, moved or {})

    def add_input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> fx.Node:
        """One more input, behind the others."""
        raise InputError(f"a PyTorch program cannot be given one more input ({name})")

    def declare_rows(self, value: fx.Node, rows: int | str) -> None:
        """Nothing to do: shapes are noted on every value."""

    def declare_width(self, value: fx.Node, width: int) -> None:
        """Nothing to do, likewise."""

    def add_output(
        self, value: fx.Node, name: str, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """One more output, behind the others."""
        raise InputError(f"a PyTorch program cannot be given one more output ({name})")

    def _redirect_shape(self, old: fx.Node, new: fx.Node, moved: Mapping[int, int]) -> None:
        """Sizes of batch and tokens come from ``new``, the others are what ``old`` declared."""
        sizes: list[Size] = [
            dim if isinstance(dim, int) else ((cast(Value, new), moved.get(axis, axis)),)
            for axis, dim in enumerate(self.declared_shape(old))
        ]
        for reader in self.shape_readers(old):
            self.replace_shape(reader, sizes)

    def replace_output(
        self, old: fx.Node, new: fx.Node, shape: Sequence[int | str | None] | None = None
    ) -> None:
        """Return ``new`` where ``old`` was returned, under its name."""
        self.program.output_node.replace_input_with(old, new)
        self._hand_over(old, new)

    def remove_output(self, value: fx.Node) -> None:
        """Return a value no more."""
        self._return([each for each in self.program.returned if each is not value])

    def merge_outputs(
        self,
        olds: Sequence[fx.Node],
        new: fx.Node,
        name: str,
        shape: Sequence[int | str | None] | None = None,
    ) -> None:
        """Return ``new`` in the place of the first of ``olds``, and no other of them."""
        first, *others = olds
        self.program.output_node.replace_input_with(first, new)
        for other in others:
            self.remove_output(other)
        rename(new, name)

    def _return(self, values: Sequence[Any]) -> None:
        self.program.output_node.args = (tuple(values),)

    # Shapes that are read at run time

    def shape_readers(self, value: fx.Node) -> Sequence[fx.Node]:
        """The nodes that read one of its sizes."""
        return [node for node in value.users if self.is_shape_reader(node)]

    def is_shape_reader(self, node: fx.Node) -> bool:
        """Whether the node reads a size."""
        return node.target in (torch.ops.aten.sym_size.int, torch.ops.aten.size.int)

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """Operands; conditionals are given all that their branches read."""
        return self.operands(node)

    def replace_shape(self, reader: fx.Node, sizes: Sequence[Size]) -> None:
        """Give the readers of a size one put together from numbers and axes of other values."""
        axis = cast(int, reader.args[1])
        builder = self.builder(reader, reader.name)
        reader.replace_all_uses_with(builder.size(sizes[axis]))  # type: ignore[arg-type]

    # Quantized activations

    def take_out_roundings(self) -> Sequence[Rounding]:
        """None: programs are read as they are."""
        return ()

    def put_back_roundings(self) -> int:
        """None."""
        return 0

    # Tidying

    def inline(self, domain: str) -> int:
        """Put standard operators in the place of every call of the fused one."""
        if domain != contract.DOMAIN:
            return 0
        self.prune()
        return inline_operator(self.program)

    def prune(self) -> int:
        """Sort the nodes and drop what nothing reads, inputs that were replaced included."""
        before = len(self.program.graph.nodes)
        in_order(self.program.graph)
        drop_dead(self.program.graph)
        for old in self._retired:
            self.program.graph.erase_node(old)
        self._retired.clear()
        for node in [each for each in self.program.stored if not each.users]:
            del self.program.stored[node]
            self.program.graph.erase_node(node)
        self.program.module.delete_all_unused_submodules()
        return before - len(self.program.graph.nodes)

    def settle_functions(self) -> None:
        """Check what came of it, and make it callable."""
        self.program.graph.lint()
        self.program.module.recompile()

    def text(self) -> str:
        """The graph as a person reads it."""
        return str(self.program.graph)


def _places(program: LiftedProgram) -> dict[fx.Node, int]:
    return {node: place for place, node in enumerate(program.graph.nodes)}


def _is_node(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_part(node)


def _is_part(node: fx.Node) -> bool:
    """Whether the node takes one of several values that another made."""
    return node.target is operator.getitem
