"""The fused operators of a PyTorch program, in its branches too."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram
from mla_opt.operator import contract
from mla_opt.sites import FusedAttention

_PREFIX = f"{contract.DOMAIN}.latent_attention"


def fused_attentions(program: LiftedProgram) -> Sequence[FusedAttention]:
    """Every ``latent_attention``, module by module."""
    modules = (m for m in program.module.modules() if isinstance(m, fx.GraphModule))
    nodes = (node for module in modules for node in module.graph.nodes)
    return [_fused(node) for node in nodes if str(node.target).startswith(_PREFIX)]


def _fused(node: fx.Node) -> FusedAttention:
    given = dict(zip(contract.INPUTS, node.args)) | node.kwargs
    operands = {
        name: value
        for name, value in given.items()
        if name in contract.INPUTS and isinstance(value, fx.Node)
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
