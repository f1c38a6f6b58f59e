"""Standard operators in the place of the fused one, for programs that must not need this package.

The operator's own definition in PyTorch is traced on the example values of each call.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram
from mla_opt.graphs.torch.order import drop_dead
from mla_opt.operator.torch.call import Call
from mla_opt.operator.torch.composite import attend_composite
from mla_opt.operator.torch.op import NAME


def inline_operator(program: LiftedProgram) -> int:
    """Inline every call, those in branches too; returns how many there were."""
    graphs = [
        module.graph for module in program.module.modules() if isinstance(module, fx.GraphModule)
    ]
    overload = getattr(torch.ops.mla_opt, NAME).default
    calls = [node for graph in graphs for node in graph.nodes if node.target is overload]
    for node in calls:
        _inline(program, node)
    for module in program.module.modules():
        if isinstance(module, fx.GraphModule):
            drop_dead(module.graph)
            module.recompile()
    return len(calls)


def _inline(program: LiftedProgram, node: fx.Node) -> None:
    """Copy what one call traces to in front of it."""
    places = [place for place, each in enumerate(node.args) if isinstance(each, fx.Node)]
    operands = [node.args[place] for place in places]
    examples = [each.meta["val"] for each in operands if isinstance(each, fx.Node)]

    def call(*tensors: torch.Tensor) -> Any:
        arguments: list[Any] = list(node.args)
        for place, tensor in zip(places, tensors):
            arguments[place] = tensor
        attributes: dict[str, Any] = dict(node.kwargs)
        return tuple(attend_composite(Call(*arguments, **attributes)))

    with program.fake_mode, torch.no_grad():
        traced = make_fx(call, tracing_mode="real", pre_dispatch=True)(*examples)
    copied: dict[fx.Node, fx.Node] = {}
    inner = [each for each in traced.graph.nodes if each.op == "placeholder"]
    copied.update(zip(inner, operands))  # type: ignore[arg-type]
    with node.graph.inserting_before(node):
        results: Any = node.graph.graph_copy(traced.graph, copied)
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)
