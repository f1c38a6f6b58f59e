"""A lifted program as an exported one again, with the tensors it still needs and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from mla_opt.graphs.torch.lifted_program import LiftedProgram, Stored, is_tensor
from mla_opt.programs.from_exported import METADATA, changed_places

_SAVED = (InputKind.PARAMETER, InputKind.BUFFER)
_NEW = {"parameter": InputKind.PARAMETER, "constant": InputKind.CONSTANT_TENSOR}


def exported(program: LiftedProgram, source: ExportedProgram) -> ExportedProgram:
    """The program, called as ``source`` is; by name, where it takes other inputs."""
    signature = ExportGraphSignature(
        input_specs=_input_specs(program, source),
        output_specs=_output_specs(program, source),
    )
    same = _same_interface(signature, source.graph_signature)
    module = program.module
    module.meta[METADATA] = {**module.meta.get(METADATA, {}), **program.metadata}
    return ExportedProgram(
        root=module,
        graph=program.graph,
        graph_signature=signature,
        state_dict=_state_dict(program, source, signature),
        range_constraints=dict(source.range_constraints),
        module_call_graph=_call_graph(program, source, same),
        example_inputs=source.example_inputs if same else None,
        constants=_constants(program, source, signature),
        verifiers=source.verifiers,
    )


def _input_specs(program: LiftedProgram, source: ExportedProgram) -> list[InputSpec]:
    """What each placeholder is: what it was, or something new."""
    known = {getattr(spec.arg, "name", ""): spec for spec in source.graph_signature.input_specs}
    return [
        known[node.name] if node.name in known else _new_spec(program, node)
        for node in program.graph.nodes
        if node.op == "placeholder"
    ]


def _new_spec(program: LiftedProgram, node: fx.Node) -> InputSpec:
    argument = TensorArgument(name=node.name)
    stored = program.stored.get(node)
    if stored is None:
        return InputSpec(InputKind.USER_INPUT, argument, None)
    return InputSpec(_NEW[stored.kind], argument, stored.name)


def _output_specs(program: LiftedProgram, source: ExportedProgram) -> list[OutputSpec]:
    """What each returned value is; those that are gone took their place with them."""
    before = source.graph_signature.output_specs
    states = (s for s in before if s.kind is not OutputKind.USER_OUTPUT)
    left = {node.name for node in program.changed}
    changed = [s for s, place in zip(states, changed_places(source)) if place in left]
    others = [s for s in before if s.kind is OutputKind.USER_OUTPUT]
    returned = program.returned
    constants = [s for s in others if not isinstance(s.arg, TensorArgument)]
    specs = [
        replace(spec, arg=TensorArgument(name=value.name)) for spec, value in zip(changed, returned)
    ]
    for value in returned[len(changed) :]:
        if isinstance(value, fx.Node) and is_tensor(value):
            specs.append(OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=value.name), None))
        else:
            specs.append(constants.pop(0))
    return specs


def _same_interface(after: ExportGraphSignature, before: ExportGraphSignature) -> bool:
    """Whether there are as many inputs and outputs as there were."""
    return len(after.user_inputs) == len(before.user_inputs) and len(after.user_outputs) == len(
        before.user_outputs
    )


def _state_dict(
    program: LiftedProgram, source: ExportedProgram, signature: ExportGraphSignature
) -> dict[str, Any]:
    """The tensors of the signature that a state dict holds."""
    stored = {each.name: each for each in program.stored.values()}
    states = _states(program, signature)
    tensors: dict[str, Any] = {}
    for spec in signature.input_specs:
        name = spec.target or ""
        if spec.kind not in _SAVED or spec.persistent is False:
            continue
        known, new = states.get(name, source.state_dict.get(name)), stored.get(name)
        if new is not None and new.kind != "constant" and new.tensor is not known:
            tensors[name] = _parameter(new) if new.kind == "parameter" else new.tensor
        elif known is not None:
            tensors[name] = known
    return tensors


def _states(program: LiftedProgram, signature: ExportGraphSignature) -> dict[str, torch.Tensor]:
    """The content of buffers that the program changes, by their attribute paths."""
    paths = signature.inputs_to_buffers
    return {
        paths[node.name]: content
        for node, content in program.changed.items()
        if content is not None and node.name in paths
    }


def _parameter(stored: Stored) -> torch.nn.Parameter:
    return torch.nn.Parameter(stored.tensor, requires_grad=False)


def _constants(
    program: LiftedProgram, source: ExportedProgram, signature: ExportGraphSignature
) -> dict[str, Any]:
    """What the signature names besides: buffers that are not saved, constants, objects."""
    new = {s.name: s.tensor for s in program.stored.values() if s.kind == "constant"}
    saved = set(source.state_dict)
    states = {n: t for n, t in _states(program, signature).items() if n not in saved}
    known = {**new, **source.constants, **states}
    used = {spec.target for spec in signature.input_specs}
    return {name: value for name, value in known.items() if name in used}


def _call_graph(
    program: LiftedProgram, source: ExportedProgram, same: bool
) -> list[ModuleCallEntry]:
    """How the program is called: as before, or with inputs by name and a dict returned."""
    if same:
        return list(source.module_call_graph)
    inputs = [node.name for node in program.inputs]
    outputs = [node.name for node in program.outputs]
    signature = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=_spec(((), dict.fromkeys(inputs, 0))),
        out_spec=_spec(dict.fromkeys(outputs, 0)),
        forward_arg_names=inputs,
    )
    return [ModuleCallEntry("", signature)]


def _spec(example: Any) -> pytree.TreeSpec:
    _, spec = pytree.tree_flatten(example)
    return spec


__all__: Sequence[str] = ["exported"]
