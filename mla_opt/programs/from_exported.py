"""An exported program as a lifted one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from mla_opt.errors import InputError
from mla_opt.graphs.torch.lifted_program import (
    LiftedProgram,
    Stored,
    StoredKind,
    described,
    identifiers,
    name_outputs,
)
from mla_opt.programs.functionalize import changes, check_inference, functional
from mla_opt.programs.local_changes import settle_changes
from mla_opt.programs.settled_program import settled

METADATA = "custom"
"""The entry of a graph module's metadata that torch.export saves."""

_KINDS: dict[InputKind, StoredKind] = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}
_CHANGED = {OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION}


def lifted(exported: ExportedProgram) -> tuple[LiftedProgram, ExportedProgram]:
    """The program to rewrite, and the functional program that it is a copy of.

    Raises:
        InputError: it is in training mode, or changes tensors in a way that cannot be undone.
    """
    _check_inference(exported)
    program = _lift(exported)
    settle_changes(program.graph)
    if not changes(program.module):
        return program, exported
    source = settled(exported) or functional(exported)
    return _lift(source), source


def _lift(source: ExportedProgram) -> LiftedProgram:
    """A lifted copy."""
    signature = source.graph_signature
    by_name = {node.name: node for node in source.graph.nodes if node.op == "placeholder"}
    changed = set(signature.buffers_to_mutate.values())
    stored: dict[fx.Node, Stored] = {}
    inputs: list[fx.Node] = []
    kept: dict[str, torch.Tensor] = {}
    for spec in signature.input_specs:
        node = by_name.get(getattr(spec.arg, "name", ""))
        if node is None or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        if spec.kind in _KINDS and spec.target not in changed:
            stored[node] = _stored(source, spec.target or "", _KINDS[spec.kind])
            continue
        inputs.append(node)
        if spec.kind in _KINDS:
            kept[node.name] = _stored(source, spec.target or "", _KINDS[spec.kind]).tensor
    states = [by_name[name] for name in changed_places(source)]
    program = LiftedProgram(
        source.graph_module,
        stored,
        inputs,
        described(source.graph_module.meta.get(METADATA, {})),
        {node: kept.get(node.name) for node in states},
    ).clone()
    name_outputs(program, list(_output_names(source)))
    return program


def changed_places(exported: ExportedProgram) -> list[str]:
    """Names of the placeholders of changed states, in the order of the outputs that they become."""
    signature = exported.graph_signature
    buffers = {path: name for name, path in signature.inputs_to_buffers.items()}
    targets = [spec.target or "" for spec in signature.output_specs if spec.kind in _CHANGED]
    return [buffers.get(target, target) for target in targets]


def _stored(exported: ExportedProgram, target: str, kind: StoredKind) -> Stored:
    """A tensor of the program by its attribute path."""
    tensor = exported.state_dict.get(target)
    if tensor is None:
        tensor = exported.constants.get(target)
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"the program stores no tensor {target!r}, though its signature says so")
    return Stored(target, kind, tensor)


def _check_inference(exported: ExportedProgram) -> None:
    check_inference(exported.graph)
    kinds = {spec.kind for spec in exported.graph_signature.output_specs}
    if kinds & {OutputKind.LOSS_OUTPUT, OutputKind.GRADIENT_TO_PARAMETER}:
        raise InputError("the program computes gradients; export the model for inference")


def _output_names(exported: ExportedProgram) -> Iterator[str]:
    """Names for what the program returns: where in the result it is, or which state it becomes."""
    changed = [f"new_{place}" for place in changed_places(exported)]
    result = pytree.tree_unflatten([0] * _leaves(exported.call_spec.out_spec), _out(exported))
    paths, _ = pytree.tree_flatten_with_path(result)
    yield from identifiers(iter(changed))
    yield from identifiers(pytree.keystr(path) for path, _ in paths)


def _out(exported: ExportedProgram) -> Any:
    return exported.call_spec.out_spec


def _leaves(spec: Any) -> int:
    count: int = spec.num_leaves
    return count
