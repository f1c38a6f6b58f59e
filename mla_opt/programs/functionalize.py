"""No tensor is changed in place: the form that everything else looks at.

Exporters leave ``copy_`` nodes that nothing reads, yet whose effect everything depends on. Here
they become values; a state that the program changes becomes one more output.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from mla_opt.errors import InputError


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The same program without changes in place; itself where it has none.

    Linear layers and attentions stay whole: an empty table decomposes nothing.

    Raises:
        InputError: the changes cannot be undone.
    """
    if not changes(exported.graph_module):
        return exported
    try:
        result: ExportedProgram = exported.run_decompositions({})
    except Exception as error:  # torch's errors here share no base
        raise InputError(
            f"the program changes tensors in place, and cannot be made functional: {_first(error)}"
        ) from error
    left = changes(result.graph_module)
    if left:
        names = ", ".join(node.name for node in left[:3])
        raise InputError(f"the program still changes tensors in place after tracing: {names}")
    return result


def check_inference(graph: fx.Graph) -> None:
    """Refuse what only training does.

    Raises:
        InputError: the graph drops something out at random.
    """
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if "dropout" in name and len(node.args) > 2 and node.args[1] and node.args[2]:
            raise InputError(
                f"{node.name} drops out activations: the program was exported in training mode;"
                " call model.eval() and export it again"
            )


def changes(module: torch.nn.Module) -> list[fx.Node]:
    """The nodes of a graph module, and of those it holds, that change a tensor in place."""
    return [
        node
        for graph_module in module.modules()
        if isinstance(graph_module, fx.GraphModule)
        for node in graph_module.graph.nodes
        if _changes(node)
    ]


def _changes(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    return node.op in ("call_method", "call_module") or getattr(node.target, "__name__", "") in (
        "setitem",
        "iadd",
        "imul",
    )


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
