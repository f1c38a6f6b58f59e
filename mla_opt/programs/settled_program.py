"""An exported program whose changes in place became values, without tracing it again.

A state that it changes, buffer or input, is one more output, in front of the others, as
torch.export has it after decomposition.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from mla_opt.graphs.torch.lifted_program import copy_module
from mla_opt.programs.functionalize import changes
from mla_opt.programs.local_changes import settle_changes

_STATES = {
    InputKind.BUFFER: OutputKind.BUFFER_MUTATION,
    InputKind.USER_INPUT: OutputKind.USER_INPUT_MUTATION,
}


def settled(exported: ExportedProgram) -> ExportedProgram | None:
    """The functional program; None where a change is of a kind that only tracing can follow."""
    module = copy_module(exported.graph_module)
    changed = settle_changes(module.graph, of_inputs=True)
    states = _state_specs(exported.graph_signature, changed)
    if changes(module) or states is None:
        return None
    returned = module.graph.output_node()
    before: tuple[Any, ...] = tuple(returned.args[0])  # type: ignore[arg-type]
    others = [_named(s, v) for s, v in zip(exported.graph_signature.output_specs, before)]
    returned.args = ((*changed.values(), *before),)
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(
            input_specs=list(exported.graph_signature.input_specs),
            output_specs=[*states, *others],
        ),
        state_dict=exported.state_dict,
        range_constraints=dict(exported.range_constraints),
        module_call_graph=list(exported.module_call_graph),
        example_inputs=exported.example_inputs,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )


def _state_specs(
    signature: ExportGraphSignature, changed: dict[fx.Node, fx.Node]
) -> list[OutputSpec] | None:
    """An output for every changed state; None where something else is changed."""
    inputs = {getattr(spec.arg, "name", ""): spec for spec in signature.input_specs}
    specs: list[OutputSpec] = []
    for place, value in changed.items():
        known = inputs[place.name]
        if known.kind not in _STATES:
            return None
        target = known.target if known.kind is InputKind.BUFFER else place.name
        specs.append(OutputSpec(_STATES[known.kind], TensorArgument(name=value.name), target))
    return specs


def _named(spec: OutputSpec, value: Any) -> OutputSpec:
    """An output as before, under the name of the value that is returned now."""
    if not isinstance(spec.arg, TensorArgument):
        return spec
    return replace(spec, arg=TensorArgument(name=value.name))
