"""The fused operators of a PyTorch program, in its branches too."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram
from mla_opt.operator import contract
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.torch.op import (
    MULTI_HEAD_NAME,
    MULTI_HEAD_NAME_IN_PLACE,
    NAME,
    NAME_IN_PLACE,
)
from mla_opt.sites import FusedAttention

_INPUTS = {
    f"{contract.DOMAIN}.{NAME}": contract.INPUTS,
    f"{contract.DOMAIN}.{NAME_IN_PLACE}": contract.INPUTS,
    f"{contract.DOMAIN}.{MULTI_HEAD_NAME}": MULTI_HEAD_INPUTS,
    f"{contract.DOMAIN}.{MULTI_HEAD_NAME_IN_PLACE}": MULTI_HEAD_INPUTS,
}


def operand_names(node: fx.Node) -> tuple[str, ...] | None:
    """Names of a fused operator's operands, in their order; ``None`` for any other node."""
    return _INPUTS.get(str(node.target).rpartition(".")[0])


def is_multi_head(node: fx.Node) -> bool:
    """Whether the node is the operator that holds its weights."""
    return operand_names(node) is MULTI_HEAD_INPUTS


def fused_attentions(program: LiftedProgram) -> Sequence[FusedAttention]:
    """Every fused operator, module by module."""
    modules = (m for m in program.module.modules() if isinstance(m, fx.GraphModule))
    nodes = (node for module in modules for node in module.graph.nodes)
    named = ((node, operand_names(node)) for node in nodes)
    return [_fused(node, names) for node, names in named if names is not None]


def _fused(node: fx.Node, names: tuple[str, ...]) -> FusedAttention:
    given = dict(zip(names, node.args)) | node.kwargs
    operands = {
        name: value for name, value in given.items() if name in names and isinstance(value, fx.Node)
    }
    query = operands["query"]
    return FusedAttention(
        label=f"{node.name} ({node.target})",
        query=query.name,
        shapes={name: _shape(value) for name, value in operands.items()},
        scale=float(str(given["scale"])),
        kv_lora_rank=int(str(given["kv_lora_rank"])),
        dtype=_dtype(query),
        cache_dtype=_dtype(operands["cache"]) if "cache" in operands else None,
    )


def _dtype(node: fx.Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _shape(node: fx.Node) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
