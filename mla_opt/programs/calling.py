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

from mla_opt.programs.lifted_program import LiftedProgram

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Entrance:
    """How the leaves of a program's arguments and results are called.

    ``arguments`` has the name of a tensor, or a constant, for every leaf. ``states`` maps an output
    that a call leaves in one of its arguments to that argument.
    """

    arguments: tuple[tuple[str, Any], ...]
    in_spec: pytree.TreeSpec | None
    results: tuple[str | None, ...]
    states: dict[str, str] = field(default_factory=dict)

    def call(self, module: torch.nn.Module, feeds: Mapping[str, torch.Tensor]) -> Tensors:
        """Run ``module`` and return its outputs by name."""
        leaves = [feeds.get(name, constant) for name, constant in self.arguments]
        args, kwargs = self._containers(leaves)
        with torch.no_grad():
            produced = pytree.tree_leaves(module(*args, **kwargs), is_leaf=_is_none)
        outputs = {name: value for name, value in zip(self.results, produced) if name}
        by_name = {name: leaf for (name, _), leaf in zip(self.arguments, leaves)}
        return outputs | {name: by_name[source] for name, source in self.states.items()}

    def _containers(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        if self.in_spec is None:
            return tuple(leaves), {}
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        return args, kwargs


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
    return Entrance(arguments, exported.call_spec.in_spec, tuple(names[len(changed) :]), states)


def of_module(program: LiftedProgram, module: fx.GraphModule) -> Entrance:
    """The entrance of a graph module, whose placeholders are its arguments."""
    arguments = tuple((node.name, None) for node in module.graph.find_nodes(op="placeholder"))
    names = [value.name if isinstance(value, fx.Node) else None for value in program.returned]
    return Entrance(arguments, getattr(module, "_in_spec", None), tuple(names))
