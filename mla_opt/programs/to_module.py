"""A lifted program as a graph module again: stored tensors are attributes, changes are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mla_opt.graphs.torch.lifted_program import LiftedProgram, Stored
from mla_opt.programs.from_module import _METADATA, LiftedModule


def graph_module(source: LiftedModule) -> fx.GraphModule:
    """The module; it is called as the original is, if it still takes and returns as much."""
    program = source.program
    graph, module = program.graph, program.module
    _write_back(source)
    root = torch.nn.Module()
    for node, stored in program.stored.items():
        if node.name in source.arguments:
            continue  # the caller gives it, as before
        with graph.inserting_before(node):
            # get_attr() would warn that the graph's module, which is left here, has no such tensor
            attribute = graph.create_node("get_attr", _keep(root, stored))
        attribute.meta = dict(node.meta)
        node.replace_all_uses_with(attribute)
        graph.erase_node(node)
    _all_arguments(graph, source)
    _attributes_last(graph)
    for name, child in module.named_children():
        root.add_module(name, child)
    result = fx.GraphModule(root, graph)
    result.meta.update(source.original.meta)
    result.meta[_METADATA] = {**result.meta.get(_METADATA, {}), **program.metadata}
    if _is_called_alike(source, program):
        result.graph.set_codegen(source.original.graph._codegen)
    result.recompile()
    return result


def _write_back(source: LiftedModule) -> None:
    """Let a call change what it changed, and return what it returned."""
    graph, changed = source.program.graph, source.changed
    returned = graph.output_node()
    values: list[Any] = source.program.returned
    by_name = {node.name: node for node in graph.find_nodes(op="placeholder")}
    with graph.inserting_before(returned):
        for name, value in zip(changed, values):
            graph.call_function(torch.ops.aten.copy_.default, (by_name[name], value))
    kept = values[len(changed) :]
    same = len(kept) == source.structure.num_leaves
    returned.args = (pytree.tree_unflatten(kept, source.structure) if same else tuple(kept),)


def _keep(root: torch.nn.Module, stored: Stored) -> str:
    """Keep a tensor where its path says, and return the path."""
    *owners, name = stored.name.split(".")
    module = root
    for owner in owners:
        if not hasattr(module, owner):
            module.add_module(owner, torch.nn.Module())
        module = module.get_submodule(owner)
    if stored.kind == "parameter":
        parameter = stored.tensor
        if not isinstance(parameter, torch.nn.Parameter):
            parameter = torch.nn.Parameter(parameter, requires_grad=False)
        module.register_parameter(name, parameter)
    else:
        module.register_buffer(name, stored.tensor)
    return stored.name


def _all_arguments(graph: fx.Graph, source: LiftedModule) -> None:
    """Take what the original takes, in its order, whether it is still read or not."""
    places = {node.name: node for node in graph.find_nodes(op="placeholder")}
    if set(places) - set(source.arguments):
        return  # it is called otherwise
    known = {node.name: node for node in source.original.graph.find_nodes(op="placeholder")}
    body = next(node for node in graph.nodes if node.op != "placeholder")
    for name in source.arguments:
        if name not in places:
            with graph.inserting_before(body):
                places[name] = graph.placeholder(name)
            places[name].meta = dict(known[name].meta) if name in known else {}
        body.prepend(places[name])


def _attributes_last(graph: fx.Graph) -> None:
    """Placeholders come first in a graph."""
    body = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in graph.find_nodes(op="get_attr"):
        if node < body:
            body.prepend(node)


def _is_called_alike(source: LiftedModule, program: LiftedProgram) -> bool:
    given = tuple(node.name for node in program.graph.find_nodes(op="placeholder"))
    return given == source.arguments and isinstance(
        program.graph.output_node().args[0], type(source.original.graph.output_node().args[0])
    )
