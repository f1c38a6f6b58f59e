"""torch.onnx.export of programs with the operator: the node, its body, and what runs of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import mla_opt
from mla_opt.errors import InputError
from mla_opt.operator import DOMAIN, Signature, function_body
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.multi_head import MultiHeadSignature
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME
from tests.operator.cases import NARROW_SIGNATURES, RANK, SCALE, name, operands
from tests.operator.multi_head_cases import SMALL, SMALL_STORAGES, factors, weights
from tests.operator.multi_head_cases import operands as multi_head_operands
from tests.torch_operator import multi_head_calls
from tests.torch_operator.calls import OPERATOR, assert_matches, attributes, positional, tensor

SIGNATURES = [
    Signature(causal=True, sink=True),
    Signature(has_cache=True, split=True, bias="boolean", causal=True),
    Signature(has_cache=True, in_place=True, bias="additive"),
    Signature(has_latent=False, has_cache=True, in_place=True, sink=True),
    NARROW_SIGNATURES[0],
]


class Model(torch.nn.Module):
    """The operator between two others; absent outputs are not returned."""

    def __init__(self, signature):
        super().__init__()
        self.signature = signature

    def forward(self, given):
        outputs = OPERATOR(*given, **attributes(self.signature))
        kept = outputs[: len(self.signature.outputs)]
        return (kept[0] * 1.0, *kept[1:])


def exported(signature, feeds, optimize=True):
    program = torch.export.export(Model(signature), (positional(feeds),))
    table = mla_opt.onnx_translation_table()
    return torch.onnx.export(
        program, custom_translation_table=table, optimize=optimize, verbose=False
    )


def run(model, feeds, kernel):
    options = ort.SessionOptions()
    if kernel:
        options.register_custom_ops_library(str(mla_opt.kernel_library()))
    serialized = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    given = list(feeds.values())
    return session.run(None, {x.name: value for x, value in zip(session.get_inputs(), given)})


def nodes(model):
    return [node for node in model.graph if node.domain == DOMAIN]


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as_translated"])
@pytest.mark.parametrize("signature", SIGNATURES, ids=name)
def test_the_same_numbers_with_and_without_the_kernel(signature, optimize):
    feeds = operands(signature)
    model = mla_opt.attach_function_bodies(exported(signature, feeds, optimize))
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    for kernel in (True, False):
        got = [tensor(value) for value in run(model, feeds, kernel)]
        got += [torch.empty(0)] * (3 - len(got))
        assert_matches(got, signature, feeds)


@pytest.mark.parametrize("signature", SIGNATURES, ids=name)
def test_the_node_and_the_body_are_those_of_optimizing_a_file(signature):
    model = mla_opt.attach_function_bodies(exported(signature, operands(signature)))
    (node,) = nodes(model)
    assert (node.op_type, node.overload) == ("LatentAttention", "")
    assert len(node.inputs) == len(signature.slots)
    assert len(node.outputs) == len(signature.outputs)
    given = {key: attribute.value for key, attribute in node.attributes.items()}
    assert given == signature.node_attributes(SCALE, RANK)
    (attached,) = model.functions.values()
    wanted = function_body(signature, model.opset_imports[""], style=ONNX_RUNTIME)
    assert attached.identifier() == wanted.identifier()
    assert [n.op_type for n in attached] == [n.op_type for n in wanted]


def test_attaching_twice_changes_nothing():
    signature = SIGNATURES[1]
    program = exported(signature, operands(signature))
    once = ir.serde.serialize_model(mla_opt.attach_function_bodies(program))
    assert ir.serde.serialize_model(mla_opt.attach_function_bodies(program.model)) == once


def test_an_output_that_is_not_there_is_refused():
    class Greedy(torch.nn.Module):
        def forward(self, query, latent):
            return OPERATOR(query, latent, scale=SCALE, kv_lora_rank=RANK)[:2]

    feeds = operands(Signature())
    given = tuple(torch.from_numpy(value) for value in feeds.values())
    program = torch.onnx.export(
        torch.export.export(Greedy(), given),
        custom_translation_table=mla_opt.onnx_translation_table(),
        verbose=False,
    )
    with pytest.raises(InputError, match="new_cache is used, but with the inputs query, latent"):
        mla_opt.attach_function_bodies(program)


def test_what_is_no_program_is_refused():
    with pytest.raises(InputError, match="not a ndarray"):
        mla_opt.attach_function_bodies(np.zeros(1))


class Holding(torch.nn.Module):
    """The operator that holds its weights, which are the module's own."""

    def __init__(self, signature, feeds):
        super().__init__()
        self.signature = signature
        for key, value in feeds.items():
            if key.startswith("kv_b"):
                self.register_buffer(key, multi_head_calls.tensor(value))

    def forward(self, given):
        held = [getattr(self, key, None) for key in MULTI_HEAD_INPUTS]
        operands = [own if own is not None else other for own, other in zip(held, given)]
        outputs = multi_head_calls.OPERATOR(
            *operands, **multi_head_calls.attributes(self.signature)
        )
        return (outputs[0] * 1.0, outputs[1])


@pytest.mark.parametrize("storage", ["float16", "packed4_zeros"])
def test_weights_go_as_they_are_stored(storage):
    how, *types = SMALL_STORAGES[storage]
    attention = Signature(has_cache=True, causal=True)
    signature = MultiHeadSignature(attention, how, factors=storage != "float16")
    feeds = multi_head_operands(signature, weights(how, *types, SMALL) | factors(SMALL))
    given = [
        None if key.startswith("kv_b") else value
        for key, value in zip(MULTI_HEAD_INPUTS, multi_head_calls.positional(feeds))
    ]
    program = torch.export.export(Holding(signature, feeds), (given,))
    table = mla_opt.onnx_translation_table()
    model = mla_opt.attach_function_bodies(
        torch.onnx.export(program, custom_translation_table=table, verbose=False)
    )
    (node,) = nodes(model)
    assert (node.op_type, len(node.inputs)) == ("MultiHeadLatentAttention", len(signature.slots))
    fed = {key: value for key, value in feeds.items() if not key.startswith("kv_b")}
    for kernel in (True, False):
        got = [tensor(value) for value in run(model, fed, kernel)]
        multi_head_calls.assert_matches([*got, torch.empty(0)], signature, feeds)
