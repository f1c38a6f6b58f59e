"""How a model over packed tokens looks to those who drive it like the original.

    input_ids [1, T]                          -->  [batch, new]
    past [blocks, block size, 1, C+R]         -->  [batch, 1, past, C+R]
    whose tokens these are, where rows go     -->  (told by the attention mask)

It is a graph to look at: nothing runs it.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.operator.paged_attention import CALL, NUM_TOKENS
from mla_opt.verification.interface_map import DroppedInput, InterfaceMap
from mla_opt.verification.onnx.paged.stand_in import paged_attentions, scale_of

_BATCH, _NEW, _PAST = "batch", "new_tokens", "past_tokens"


def outline(model: ir.Model) -> ir.Model:
    """A copy with padded inputs and outputs, and caches that grow."""
    copy = model.clone()
    changes = InterfaceMap.of(copy)
    told = {name for state in changes.states for name in state.optimized.inputs}
    returned = {name for state in changes.states for name in state.optimized.outputs}
    _drop(copy)
    for value in copy.graph.inputs:
        _declare(value, value.name in told, _PAST)
    for value in copy.graph.outputs:
        _declare(value, value.name in returned, f"{_PAST} + {_NEW}")
    copy.graph.inputs.extend(_input(each) for each in changes.dropped)
    return copy


def scales(model: ir.Model) -> dict[str, str]:
    """The inputs with scales, and the cache that each is for."""
    found = ((scale_of(node), node) for node in paged_attentions(model))
    inputs = set(model.graph.inputs)
    return {
        scale.name or "": node.inputs[3].name or ""
        for scale, node in found
        if scale is not None and node.inputs[3] is not None and node.inputs[3] in inputs
    }


def _drop(model: ir.Model) -> None:
    """Take away what only packed calls have."""
    gone = {*CALL, *scales(model)}
    for value in tuple(model.graph.inputs):
        if value.name in gone:
            model.graph.inputs.remove(value)


def _declare(value: ir.Value, is_cache: bool, rows: str) -> None:
    if value.shape is None:
        return
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    if is_cache:
        value.shape = ir.Shape([_BATCH, 1, rows, sizes[-1]])
    elif NUM_TOKENS in sizes:
        rest = sizes[sizes.index(NUM_TOKENS) + 1 :]
        value.shape = ir.Shape([_BATCH, _NEW, *rest])


def _input(dropped: DroppedInput) -> ir.Value:
    kind = ir.TensorType(ir.DataType[dropped.dtype])
    return ir.Value(name=dropped.name, shape=ir.Shape(dropped.sizes), type=kind)
