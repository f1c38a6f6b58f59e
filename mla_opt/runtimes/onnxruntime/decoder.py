"""`Decoder`: a session, and what its inputs and outputs mean.

A session that `mla_opt.runtimes.onnxruntime.session` made is remembered with what its graph showed.
Of another one ONNX Runtime tells names, shapes and metadata, which suffice for the usual names.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import onnxruntime as ort

from mla_opt.graphs.interface.decoding import (
    can_pad,
    logits_port,
    token_port,
    vocabulary_of,
)
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.operator.contract import is_operator
from mla_opt.operator.multi_head import is_multi_head
from mla_opt.runtimes.onnxruntime.attention import Attention, read_attention
from mla_opt.runtimes.onnxruntime.fingerprint import Fingerprint, fingerprint
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import Driver, optimized_driver
from mla_opt.verification.site_records import METADATA_KEY as SITES_KEY


@dataclass(frozen=True, slots=True)
class Description:
    """What a model's file says of it.

    Attributes:
        label: how messages call it.
        driver: its interface, and which caches are buffers.
        optimized: whether mla-opt wrote it.
        attention: dimensions of its latent attention, where the file tells them.
        fingerprint: by which a saved cache knows its model.
        counts_each: whether a fused operator counts the rows of each sequence's buffers, for every
            state, so that sequences of one call may have pasts of different lengths.
    """

    label: str
    driver: Driver
    optimized: bool
    attention: Attention | None
    fingerprint: Fingerprint
    counts_each: bool


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model that can be run: token ids in, logits out, states from call to call."""

    session: ort.InferenceSession
    description: Description
    tokens: Port
    logits: Port

    @property
    def label(self) -> str:
        """How messages call the model."""
        return self.description.label

    @property
    def interface(self) -> ModelInterface:
        """What the model is fed and hands back."""
        return self.description.driver.interface

    @property
    def past_len_input(self) -> str | None:
        """The input that counts the rows of buffers."""
        return self.description.driver.past_len_input

    @property
    def capacity(self) -> int | None:
        """Rows of the buffers where the file fixes them."""
        return self.description.driver.capacity

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids, if it is known."""
        return vocabulary_of(self.interface, self.logits)

    @property
    def all_logits(self) -> bool:
        """Whether a call gives logits for each of its tokens, as far as the file tells."""
        return len(self.logits.sizes) < 3 or self.logits.sizes[-2] != 1

    @property
    def fixed_batch(self) -> int | None:
        """Number of sequences of a call, where the file fixes it."""
        return self.interface.limits().batch

    @property
    def can_pad(self) -> bool:
        """Whether rows of one batch may differ in length."""
        return can_pad(self.interface)


_described: weakref.WeakKeyDictionary[ort.InferenceSession, Description]
_described = weakref.WeakKeyDictionary()


def remember(session: ort.InferenceSession, description: Description) -> None:
    """Note what the file of ``session`` said, for `decoder_of`."""
    _described[session] = description


def describe(model: ir.Model, label: str, kernel: bool) -> Description:
    """Read all there is to know; ``kernel`` says that the kernel library is registered."""
    driver = optimized_driver(model, InterfaceMap.of(model))
    return Description(
        label=label,
        driver=driver,
        optimized=SITES_KEY in model.metadata_props,
        attention=read_attention(model, kernel and _has_operator(model)),
        fingerprint=fingerprint(model, driver.interface),
        counts_each=_counts_each(model, driver),
    )


def decoder_of(session: ort.InferenceSession) -> Decoder:
    """Return the decoder that ``session`` runs.

    Raises:
        InputError: it takes no token ids, keeps no cache, or has inputs of unknown meaning.
    """
    description = _described.get(session)
    if description is None:
        description = describe(_outline(session), "the session's model", kernel=False)
        remember(session, description)
    return _decoder(session, description)


def _decoder(session: ort.InferenceSession, description: Description) -> Decoder:
    interface, label = description.driver.interface, description.label
    tokens = token_port(interface, label, {description.driver.past_len_input})
    return Decoder(session, description, tokens, logits_port(interface, label))


def _has_operator(model: ir.Model) -> bool:
    return any(True for _ in _operators(model))


def _operators(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph.all_nodes():
        if is_operator(node.domain, node.op_type) or is_multi_head(node.domain, node.op_type):
            yield node


def _counts_each(model: ir.Model, driver: Driver) -> bool:
    """Whether each state is a buffer that an operator fills, counted by the input itself.

    What else is made of that input may be one number for all sequences, such as the largest.
    """
    fed = {value.name: value for value in model.graph.inputs}
    if driver.past_len_input not in fed:
        return False
    counter = fed[driver.past_len_input]
    held = [set(node.inputs) for node in _operators(model) if counter in node.inputs]
    return all(
        state.kind == "buffer" and any(fed.get(state.input.name) in operands for operands in held)
        for state in driver.interface.states
    )


def _outline(session: ort.InferenceSession) -> ir.Model:
    """A model without nodes, of what ONNX Runtime tells of the session's."""
    inputs = [typed_value(argument) for argument in session.get_inputs()]
    outputs = [typed_value(argument) for argument in session.get_outputs()]
    graph = ir.Graph(inputs, outputs, nodes=(), opset_imports={"": 18}, name="outline")
    model = ir.Model(graph, ir_version=10)
    model.metadata_props.update(session.get_modelmeta().custom_metadata_map)
    return model


_TYPES = {"float": "FLOAT", "double": "DOUBLE"}


def typed_value(argument: ort.NodeArg) -> ir.Value:
    """A value of the name, type and shape that ONNX Runtime tells of an input or an output."""
    name = argument.type.removeprefix("tensor(").removesuffix(")")
    dtype = getattr(ir.DataType, _TYPES.get(name, name.upper()), None)
    kind = None if dtype is None else ir.TensorType(dtype)
    return ir.Value(name=argument.name, shape=ir.Shape(argument.shape), type=kind)
