"""What the graph of an optimized model says for itself, whatever its metadata says.

Metadata travels in the same file as the graph, so a proof may take hints from it and no facts: how
far the graph depends on its past, which lengths it compares its sizes with, and which fused
operators it has are read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from mla_opt.files.order import bodies
from mla_opt.operator import contract
from mla_opt.verification.site_records import SiteRecord

#: Lengths in this range are tried; longer ones cost more than a proof is waited for.
LENGTHS = range(16, 4097)
#: Stored integers of at most this many elements may be lengths.
FEW = 4


def reached(model: ir.Model, inputs: Iterable[str]) -> frozenset[str]:
    """Names of the outputs that depend on the content of these inputs, not on their shape alone.

    What a branch of a conditional reads reaches all that the conditional makes.
    """
    owners = _owners(model.graph)
    names = set(inputs)
    pending = [value for value in model.graph.inputs if value.name in names]
    seen = set(pending)
    while pending:
        for node, _ in pending.pop().uses():
            made = [] if _is_shape(node) else [*node.outputs, *_around(node, owners)]
            new = [value for value in made if value not in seen]
            seen.update(new)
            pending.extend(new)
    return frozenset(value.name or "" for value in model.graph.outputs if value in seen)


def _is_shape(node: ir.Node) -> bool:
    return node.op_type in ("Shape", "Size") and not node.domain


def _owners(graph: ir.Graph) -> dict[int, ir.Node]:
    """The node that holds each branch."""
    return {
        id(branch): node
        for node in ir.traversal.RecursiveGraphIterator(graph)
        for branch in _branches(node)
    }


def _branches(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()


def _around(node: ir.Node, owners: dict[int, ir.Node]) -> Iterator[ir.Value]:
    """What the conditionals around a node make."""
    owner = owners.get(id(node.graph))
    while owner is not None:
        yield from owner.outputs
        owner = owners.get(id(owner.graph))


def has_branches(model: ir.Model) -> bool:
    """Whether the graph computes by one branch or another."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return any(node.op_type == "If" and not node.domain for node in nodes)


def lengths(model: ir.Model) -> tuple[int, ...]:
    """Stored integers that may be lengths at which the graph does something else, rising."""
    found = {number for tensor in _stored(model) for number in _numbers(tensor)}
    return tuple(sorted(number for number in found if number in LENGTHS))


def _stored(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.op_type == "Constant":
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is not None:
                    yield tensor


def _numbers(tensor: ir.TensorProtocol) -> list[int]:
    if tensor.size > FEW or not (tensor.dtype.is_integer() or tensor.dtype.is_floating_point()):
        return []
    return [int(number) for number in tensor.numpy().reshape(-1).tolist() if abs(number) < 1 << 31]


def with_fused(model: ir.Model, recorded: tuple[SiteRecord, ...]) -> tuple[SiteRecord, ...]:
    """The recorded attentions, and the fused operators of the graph that no record names."""
    known = {site.query for site in recorded}
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    fused = [_site(node) for node in nodes if _is_fused(node)]
    return (*recorded, *(site for site in fused if site is not None and site.query not in known))


def _is_fused(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (contract.DOMAIN, contract.OP_TYPE)


def _site(node: ir.Node) -> SiteRecord | None:
    """What the node says; ``None`` where its operands do not tell how wide its rows are."""
    query = node.inputs[0] if node.inputs else None
    rank = node.attributes.get_int("kv_lora_rank", 0)
    widths = [_width(value) for value in node.inputs[:3] if value is not None]
    width = next((each for each in widths if each is not None), None)
    if query is None or not query.name or query.producer() is None or not rank or width is None:
        return None
    return SiteRecord(
        name=node.name or query.name,
        query=query.name,
        w_uk=None,
        scale=node.attributes.get_float("scale", 0.0),
        kv_lora_rank=rank,
        qk_rope_head_dim=max(width - rank, 0),
    )


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
