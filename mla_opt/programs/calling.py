"""Calling a program with tensors by name, as its own users call it.

Names are those of the placeholders and of `LiftedProgram`'s outputs; whatever containers the
program takes and returns are put together and taken apart here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from mla_opt.graphs.torch.lifted_program import LiftedProgram, expression, symbolic_shape
from mla_opt.programs.dynamo import numbers

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """An argument that counts an axis of another."""

    name: str
    axis: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """A state in a buffer: the names that it has as an input and an output, and where it lies."""

    name: str
    output: str
    path: str


@dataclass(frozen=True, slots=True)
class Entrance:
    """How the leaves of a program's arguments and results are called.

    ``arguments`` has the name of a tensor for every leaf, and what to give where it is not fed: a
    constant, or the size of another. ``states`` maps an output that a call leaves in one of its
    arguments to that argument. ``buffers`` are states that the program keeps itself, ``counts``
    are arguments that are numbers, and no tensors.
    """

    arguments: tuple[tuple[str, Any], ...]
    in_spec: pytree.TreeSpec | None
    results: tuple[str | None, ...]
    states: dict[str, str] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()
    counts: frozenset[str] = frozenset()

    def call(self, module: torch.nn.Module, feeds: Mapping[str, torch.Tensor]) -> Tensors:
        """Run ``module`` and return its outputs by name."""
        numbers = {name: int(feeds[name]) for name in self.counts if name in feeds}
        given = {**feeds, **numbers}
        leaves = [_argument(given, name, other) for name, other in self.arguments]
        args, kwargs = self._containers(leaves)
        with torch.no_grad():
            for each in self.buffers:
                module.get_buffer(each.path).copy_(feeds[each.name])
            produced = pytree.tree_leaves(module(*args, **kwargs), is_leaf=_is_none)
        outputs = {name: value for name, value in zip(self.results, produced) if name}
        by_name = {name: leaf for (name, _), leaf in zip(self.arguments, leaves)}
        kept = {each.output: module.get_buffer(each.path).clone() for each in self.buffers}
        return outputs | {name: by_name[source] for name, source in self.states.items()} | kept

    def _containers(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        if self.in_spec is None:
            return tuple(leaves), {}
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        return args, kwargs


def _argument(feeds: Mapping[str, Any], name: str, other: Any) -> Any:
    if name in feeds or not isinstance(other, Size):
        return feeds.get(name, other)
    return feeds[other.name].shape[other.axis]


def _size_of(program: LiftedProgram, place: fx.Node) -> Size | int | None:
    """Which axis of an input a placeholder counts; a number where that does not vary."""
    count = place.meta.get("val", place.meta.get("example_value"))
    if not isinstance(count, torch.SymInt):
        return count if isinstance(count, int) else None
    for node in program.inputs:
        for axis, size in enumerate(symbolic_shape(node) or ()):
            if size == expression(count):
                return Size(node.name, axis)
    return count.node.hint if isinstance(count.node.hint, int) else None


def _is_none(value: Any) -> bool:
    return value is None


def of_exported(exported: ExportedProgram, program: LiftedProgram) -> Entrance:
    """The entrance of an exported program; ``program`` is the lifted form of it."""
    signature = exported.graph_signature
    specs = [spec for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    arguments = tuple(
        (getattr(spec.arg, "name", ""), getattr(spec.arg, "value", None)) for spec in specs
    )
    changed = [spec for spec in signature.output_specs if spec.kind.name.endswith("_MUTATION")]
    names = [value.name if isinstance(value, fx.Node) else None for value in program.returned]
    states = {
        name: spec.target
        for spec, name in zip(changed, names)
        if spec.kind.name == "USER_INPUT_MUTATION" and name and spec.target
    }
    places = {path: name for name, path in signature.inputs_to_buffers.items()}
    buffers = tuple(
        Buffer(places[spec.target], name, spec.target)
        for spec, name in zip(changed, names)
        if spec.kind.name == "BUFFER_MUTATION" and name and spec.target
    )
    results = tuple(names[len(changed) :])
    counts = frozenset(node.name for node in program.counts)
    return Entrance(arguments, exported.call_spec.in_spec, results, states, buffers, counts)


def of_module(
    program: LiftedProgram, module: fx.GraphModule, own: Mapping[str, torch.Tensor]
) -> Entrance:
    """The entrance of a graph module, whose placeholders are its arguments.

    ``own`` are the model's tensors among them; sizes that Dynamo passes follow from the others, and
    numbers of the model are given as they were.
    """
    fixed = numbers(module)
    arguments = tuple(
        ("", fixed[node.name])
        if node.name in fixed
        else (node.name, own[node.name] if node.name in own else _size_of(program, node))
        for node in module.graph.find_nodes(op="placeholder")
    )
    names = [value.name if isinstance(value, fx.Node) else None for value in program.returned]
    return Entrance(
        arguments,
        getattr(module, "_in_spec", None),
        tuple(names),
        counts=frozenset(node.name for node in program.counts),
    )
