"""A graph module as a lifted program: attributes become placeholders, changes in place values."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from mla_opt.errors import InputError
from mla_opt.graphs.torch.lifted_program import (
    LiftedProgram,
    Stored,
    StoredKind,
    described,
    is_size,
    name_outputs,
    rename,
)
from mla_opt.programs.dynamo import attribute_path, keep_notes
from mla_opt.programs.functionalize import changes, check_inference
from mla_opt.programs.local_changes import settle_changes

_METADATA = "custom"


@dataclass(frozen=True, slots=True)
class LiftedModule:
    """A lifted graph module.

    Attributes:
        program: the lifted form.
        original: the module that it is a copy of.
        arguments: names of the placeholders that the module had itself, in order.
        changed: names of those that a call changes, in the order of the program's first outputs.
        structure: what the module returns; its leaves are the outputs behind those.
        own: tensors of the model's own that the caller gives as arguments, by placeholder.
    """

    program: LiftedProgram
    original: fx.GraphModule
    arguments: tuple[str, ...]
    changed: tuple[str, ...]
    structure: pytree.TreeSpec
    own: dict[str, torch.Tensor]


def lifted(module: fx.GraphModule, tensors: dict[str, torch.Tensor] | None = None) -> LiftedModule:
    """The program to rewrite.

    Args:
        module: the graph module; it is not changed.
        tensors: content of placeholders that stand for stored tensors.

    Raises:
        InputError: its placeholders have no example values, or its changes in place cannot be
            undone.
    """
    copy = _flat_copy(module)
    _check_examples(copy)
    check_inference(copy.graph)
    arguments = tuple(node.name for node in copy.graph.find_nodes(op="placeholder"))
    stored = _lift_attributes(copy)
    for node in copy.graph.find_nodes(op="placeholder"):
        if node.name in (tensors or {}):
            path = attribute_path(node.name)
            stored[node.name] = Stored(path, "parameter", (tensors or {})[node.name])
    leaves, structure = pytree.tree_flatten(copy.graph.output_node().args[0])
    copy.graph.output_node().args = (tuple(leaves),)
    copy = _in_operators(copy)
    stored |= _lift_attributes(copy, {each.name for each in stored.values()})
    changed = _functional(copy)
    program = _program(copy, {n: s for n, s in stored.items() if n not in changed}, changed)
    outputs = (f"output_{place}" for place in range(structure.num_leaves))
    name_outputs(program, [*(f"new_{name}" for name in changed), *outputs])
    program.metadata.update(described(module.meta.get(_METADATA, {})))
    return LiftedModule(program, module, arguments, changed, structure, dict(tensors or {}))


def _flat_copy(module: fx.GraphModule) -> fx.GraphModule:
    """A copy without containers around its arguments, and without checks of them."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, copied))
    for old, new in copied.items():
        new.meta = dict(old.meta)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


def _check_examples(module: fx.GraphModule) -> None:
    for node in module.graph.find_nodes(op="placeholder"):
        if node.meta.get("val") is None and "example_value" in node.meta:
            node.meta["val"] = node.meta["example_value"]
        if "val" not in node.meta:
            raise InputError(
                f"placeholder {node.name!r} of the graph module has no example value, so its shape"
                " is unknown; use a module of torch.export or torch.compile"
            )


def _lift_attributes(module: fx.GraphModule, taken: Set[str] = frozenset()) -> dict[str, Stored]:
    """Put placeholders in the place of attributes; returns what each stands for, by its name.

    ``taken`` are paths that stand for other tensors already.
    """
    stored: dict[str, Stored] = {}
    placeholders: dict[str, fx.Node] = {}
    for node in list(module.graph.find_nodes(op="get_attr")):
        path = str(node.target)
        tensor = _attribute(module, path)
        if not isinstance(tensor, torch.Tensor):
            continue
        if path not in placeholders:
            with module.graph.inserting_before(next(iter(module.graph.nodes))):
                new = module.graph.placeholder(f"p_{path.replace('.', '_')}")
            new.meta["val"] = _example(module, node, tensor)
            placeholders[path] = new
            stored[new.name] = Stored(_free(path, taken), _kind(module, path), tensor)
        node.replace_all_uses_with(placeholders[path])
        module.graph.erase_node(node)
    return stored


def _free(path: str, taken: Set[str]) -> str:
    """The path, or one like it where another tensor has it."""
    numbered = (f"{path}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([path], numbered) if each not in taken)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module)


def _kind(module: torch.nn.Module, path: str) -> StoredKind:
    owner, _, name = path.rpartition(".")
    return "parameter" if name in module.get_submodule(owner)._parameters else "buffer"


def _example(module: fx.GraphModule, node: fx.Node, tensor: torch.Tensor) -> torch.Tensor:
    """What a placeholder for the tensor shows; tracing notes one of a mode of its own."""
    mode, known = _fake_mode(module), node.meta.get("val")
    if isinstance(known, torch._subclasses.FakeTensor) and known.fake_mode is mode:
        return known
    return mode.from_tensor(tensor, static_shapes=True)


def _fake_mode(module: fx.GraphModule) -> torch._subclasses.FakeTensorMode:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    raise InputError("the graph module has no example values")


def _in_operators(module: fx.GraphModule) -> fx.GraphModule:
    """The same in aten operators, traced again where it is not."""
    calls = (node for node in module.graph.nodes if node.op.startswith("call_"))
    return module if all(map(_is_traced, calls)) else _retraced(module)


def _functional(module: fx.GraphModule) -> tuple[str, ...]:
    """Undo changes in place; returns the names of the placeholders that are changed.

    What these become is returned in front of all else.
    """
    changed = settle_changes(module.graph, of_inputs=True)
    left = changes(module)
    if left:
        raise InputError(
            f"the graph module changes a tensor in place in an unknown way ({left[0].name})"
        )
    returned = module.graph.output_node()
    returned.args = ((*changed.values(), *returned.args[0]),)  # type: ignore[misc]
    return tuple(node.name for node in changed)


def _is_traced(node: fx.Node) -> bool:
    """Whether the node is an aten operator, or counts or compares sizes."""
    known = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    counts = is_size(node) or isinstance(node.meta.get("val"), (bool, torch.SymBool))
    return isinstance(node.target, known) or node.target is operator.getitem or counts


def _retraced(module: fx.GraphModule) -> fx.GraphModule:
    """The same in aten operators: Dynamo hands over functions and methods of torch."""
    places = module.graph.find_nodes(op="placeholder")
    examples = [node.meta["val"] for node in places]
    run = fx.Interpreter(module).run
    try:
        with _fake_mode(module), torch.no_grad():
            trace = make_fx(lambda *given: run(*given), tracing_mode="real", pre_dispatch=True)
            traced = trace(*examples)
    except Exception as error:  # torch's errors here share no base
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the graph module cannot be traced to aten operators: {reason}"
        ) from error
    for old, new in zip(places, traced.graph.find_nodes(op="placeholder")):
        rename(new, old.name)
        new.meta.setdefault("val", old.meta["val"])
        keep_notes(new, old)
    return traced


def _program(
    module: fx.GraphModule, stored: dict[str, Stored], changed: Sequence[str]
) -> LiftedProgram:
    """The lifted form; what it changes is somebody's who has it at hand, and stays as it is."""
    places: Sequence[fx.Node] = module.graph.find_nodes(op="placeholder")
    tensors = [node for node in places if isinstance(node.meta.get("val"), torch.Tensor)]
    by_name = {node.name: node for node in places}
    return LiftedProgram(
        module,
        {node: stored[node.name] for node in tensors if node.name in stored},
        [node for node in tensors if node.name not in stored],
        changed={by_name[name]: None for name in changed},
        movable=False,
    )
