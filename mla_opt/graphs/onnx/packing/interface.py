"""The inputs and outputs of a model over packed tokens, in the place of those over padded ones.

    input_ids, position_ids [B, S]  -->  [1, T]      logits [B, S, ...]  -->  [1, T, ...]
    attention_mask [B, P + S]       -->  none: nothing is padded

T counts the new tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from mla_opt.graphs.interface.dims import Size
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.operator.paged_attention import NUM_TOKENS


def why_not_packable(interface: ModelInterface) -> str:
    """Say which input cannot come packed, and why; empty where all can."""
    if interface.tokens is None:
        return "the model has no input that holds its tokens"
    reasons = (_why_not(port, interface) for port in interface.inputs)
    return next((reason for reason in reasons if reason), "")


def _why_not(port: Port, interface: ModelInterface) -> str:
    tokens, past = port.axis_of("query_len"), port.axis_of("past_len")
    if past is not None and isinstance(port.sizes[past], int):
        return f"input {port.name!r} takes a past of {port.sizes[past]} tokens, and no other"
    if port is interface.attention_mask or tokens is None:
        return ""
    if isinstance(port.sizes[tokens], int):
        return f"input {port.name!r} takes {port.sizes[tokens]} tokens a call, and no others"
    if port is interface.tokens and tokens != 1:
        return f"input {port.name!r} is of one sequence, without an axis for others"
    if tokens > 1 or (tokens == 1 and port.axes is not None and port.axes[0].role == "free"):
        return f"input {port.name!r} has other axes in front of its tokens"
    return ""


def pack_interface(graph: OnnxGraph, caches: Collection[ir.Value]) -> None:
    """Declare packed tokens: every input of tokens, and every output but the ``caches``."""
    interface = graph.interface
    tokens = interface.tokens
    assert tokens is not None
    taken = {value.name: value for value in graph.model.graph.inputs}
    for port in interface.inputs:
        axis = port.axis_of("query_len")
        if port.name in taken and axis is not None and port is not interface.attention_mask:
            sizes = (*(1,) * axis, NUM_TOKENS, *port.sizes[axis + 1 :])
            graph.declare_shape(taken[port.name], sizes)
    words: dict[Size, Size] = dict(zip(tokens.sizes[:2], (1, NUM_TOKENS)))
    for value in graph.model.graph.outputs:
        if value not in caches and value.shape is not None:
            declared = graph.declared_shape(value)
            graph.declare_shape(value, [words.get(size, size) for size in declared])
    graph.forget_shapes()


def drop_unread(graph: OnnxGraph) -> str:
    """Take away inputs that tell of whole sequences, and that nothing reads any more.

    Returns the name of one that something still reads; empty if there is none.
    """
    interface = graph.interface
    states = {state.input.name for state in interface.states}
    names = {
        port.name for port in interface.inputs if port.name not in states and _is_of_sequences(port)
    }
    told = [value for value in graph.model.graph.inputs if value.name in names]
    for value in told:
        if not value.uses():
            graph.drop_input(value)
    return next((value.name or "" for value in told if value.uses()), "")


def _is_of_sequences(port: Port) -> bool:
    whole = port.axis_of("batch", "total_len", "past_len") is not None
    return whole and port.axis_of("query_len") is None
