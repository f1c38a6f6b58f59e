"""A functional aten graph whose stored tensors are placeholders: what the passes rewrite.

Whatever a program was, here its parameters, buffers and constants are inputs of the graph like the
tokens are, and each knows the tensor that it stands for. Nothing in the graph changes a tensor in
place; a state that the original changed is one more output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

StoredKind = Literal["parameter", "buffer", "constant"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor.

    Attributes:
        name: the attribute path it has in its module, ``layers.0.self_attn.o_proj.weight``.
        kind: what the module keeps it as.
        tensor: its content, shared with the program it came from.
    """

    name: str
    kind: StoredKind
    tensor: torch.Tensor


@dataclass(slots=True)
class LiftedProgram:
    """One program, read and rewritten in place.

    Attributes:
        module: the graph, with the submodules that conditionals call.
        stored: the placeholders that stand for stored tensors. States that the program changes are
            not among them, nor are they constants.
        inputs: the placeholders of tensors that a caller gives, and of states.
        outputs: the values that the graph returns, in order; those that change states first.
        changed: the placeholders of states that a call changes, in the order of the first outputs,
            which are what they become; with their content at first where the program keeps them.
        movable: whether states that it changes may become others: nobody holds them elsewhere.
        metadata: what the passes write down about the result.
        specialize: whether conditions on sizes are decided by the example, under a guard.
    """

    module: fx.GraphModule
    stored: dict[fx.Node, Stored]
    inputs: list[fx.Node]
    metadata: dict[str, str] = field(default_factory=dict)
    changed: dict[fx.Node, torch.Tensor | None] = field(default_factory=dict)
    movable: bool = True
    specialize: bool = False

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self.module.graph

    @property
    def output_node(self) -> fx.Node:
        """The node that returns."""
        return self.graph.output_node()

    @property
    def returned(self) -> list[Any]:
        """What the graph returns, place by place: values, and constants that are none."""
        flat: list[Any] = pytree.tree_leaves(
            self.output_node.args[0], is_leaf=lambda each: each is None
        )
        return flat

    @property
    def outputs(self) -> list[fx.Node]:
        """The returned values that are tensors, each once."""
        nodes = (each for each in self.returned if isinstance(each, fx.Node))
        return [node for node in dict.fromkeys(nodes) if is_tensor(node)]

    @property
    def fake_mode(self) -> torch._subclasses.FakeTensorMode:
        """The mode that the example values of this graph belong to."""
        for node in self.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch._subclasses.FakeTensor):
                return value.fake_mode
        return torch._subclasses.FakeTensorMode()

    @property
    def counts(self) -> list[fx.Node]:
        """Placeholders of numbers that a caller gives and that are the size of no input."""
        sizes = {size for node in self.inputs for size in symbolic_shape(node) or ()}
        places = self.graph.find_nodes(op="placeholder")
        given = [node for node in places if isinstance(node.meta.get("val"), torch.SymInt)]
        return [node for node in given if expression(node.meta["val"]) not in sizes]

    def clone(self) -> LiftedProgram:
        """A copy that shares the stored tensors, but no graph: branches are copied, too."""
        copied: dict[fx.Node, fx.Node] = {}
        module = copy_module(self.module, copied)
        return LiftedProgram(
            module,
            {copied[node]: stored for node, stored in self.stored.items()},
            [copied[node] for node in self.inputs],
            dict(self.metadata),
            {copied[node]: content for node, content in self.changed.items()},
            self.movable,
        )


def copy_module(
    module: fx.GraphModule, copied: dict[fx.Node, fx.Node] | None = None
) -> fx.GraphModule:
    """A graph module and those it holds; ``copied`` gets the nodes of the outer one."""
    copied = {} if copied is None else copied
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, copied))
    for old, new in copied.items():
        new.meta = dict(old.meta)
    graph.output_node().meta = dict(module.graph.output_node().meta)
    result = fx.GraphModule(module, graph)
    result.meta.update(module.meta)
    for name, child in module.named_children():
        if isinstance(child, fx.GraphModule) and hasattr(result, name):
            setattr(result, name, copy_module(child))
    return result


def is_tensor(node: fx.Node) -> bool:
    """Whether the value is one tensor, as opposed to several or a size."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def sizes_of(node: fx.Node) -> list[Any]:
    """The SymPy expressions among the sizes of a tensor, or of a number that counts."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return [
        expression(size)
        for size in sizes
        if isinstance(size, torch.SymInt) and not isinstance(expression(size), int)
    ]


def is_real(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a content."""
    return not (tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor))


def is_size(node: fx.Node) -> bool:
    """Whether the value is a number that counts something."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def symbolic_shape(node: fx.Node) -> tuple[Any, ...] | None:
    """Sizes of a tensor: numbers, and SymPy expressions for those that vary."""
    return shape_of(node.meta.get("val"))


def shape_of(value: Any) -> tuple[Any, ...] | None:
    """The same of an example value; None for what is no tensor."""
    return tuple(map(expression, value.shape)) if isinstance(value, torch.Tensor) else None


def expression(size: int | torch.SymInt) -> Any:
    """A size as a number or a SymPy expression."""
    if isinstance(size, int):
        return size
    known = size.node.expr
    return int(known) if known.is_number else known


def name_outputs(program: LiftedProgram, names: Sequence[str]) -> None:
    """Call the returned values ``names``, in order; an input that is returned keeps its own."""
    taken = {node.name: node for node in program.graph.nodes}
    named: set[fx.Node] = set(program.stored) | set(program.inputs)
    for value, name in zip(program.returned, names):
        if not isinstance(value, fx.Node) or value in named:
            continue
        named.add(value)
        other = taken.get(name)
        if other is not None and other is not value:
            rename(other, f"{name}_inner")
        rename(value, name)


def rename(node: fx.Node, name: str) -> None:
    """Call a node ``name``, if no other is; FX would keep the name of one that was renamed."""
    if all(other.name != name for other in node.graph.nodes):
        node.graph._graph_namespace._used_names.discard(name)
    node._rename(name)


def identifiers(words: Iterator[str]) -> Iterator[str]:
    """Each of ``words`` as a Python identifier."""
    for word in words:
        plain = re.sub(r"\W+", "_", word).strip("_") or "output"
        yield f"output_{plain}" if plain[0].isdigit() else plain


def described(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a graph module that this package wrote."""
    return {key: value for key, value in metadata.items() if key.startswith("mla_opt.")}
