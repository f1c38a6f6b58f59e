"""Which way round a mask is, told by what its graph does with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import mla_opt
from mla_opt.graphs.interface.interface import ModelInterface
from tests.graphs.latent_block import Block, build

NUMBERS = {"never": -np.inf, "lowest": -3.4e38, "zero": 0.0, "one": 1.0, "half": 0.5, "least": -5.0}
BOOL, FLOAT, INT = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64

HIDES: dict[str, tuple[str, int, str]] = {
    "masked_fill": ("mask", BOOL, "Where mask never scores"),
    "masked_fill_lowest": ("mask", BOOL, "Where mask lowest scores"),
    "behind_casts": ("mask", FLOAT, "CastLike never scores; Equal mask one; Where 1 0 scores"),
    "behind_or": ("mask", BOOL, "Or mask causal; Where 0 never scores"),
    "not_allowed": ("mask", BOOL, "Not mask; Where 0 scores never"),
    "of_attention": ("mask", BOOL, "Not mask; Attention scores scores scores 0"),
    "added": ("mask", FLOAT, "Mul mask lowest; Add scores 0"),
    "added_of_integers": ("mask", INT, "CastFloat mask; Mul 0 lowest; Add scores 1"),
    "equal_to_one": ("mask", FLOAT, "Equal mask one; Where 0 never scores"),
    "by_name": ("key_padding_mask", BOOL, "Xor key_padding_mask causal"),
}
SHOWS: dict[str, tuple[str, int, str]] = {
    "allowed": ("mask", BOOL, "Where mask scores never"),
    "behind_and": ("mask", BOOL, "And mask causal; Where 0 scores never"),
    "not_blocked": ("mask", BOOL, "Not mask; Where 0 never scores"),
    "of_attention": ("mask", BOOL, "Attention scores scores scores mask"),
    "one_minus": ("mask", FLOAT, "Sub one mask; Mul 0 lowest; Add scores 1"),
    "equal_to_zero": ("mask", FLOAT, "Equal mask zero; Where 0 never scores"),
    "above": ("mask", FLOAT, "Greater mask half; Where 0 scores never"),
    "below": ("mask", FLOAT, "Less mask half; Where 0 never scores"),
    "as_zeros_and_ones": ("mask", BOOL, "Where mask zero one; Mul 0 lowest; Add scores 1"),
    "no_large_addend": ("mask", FLOAT, "Mul mask least; Add scores 0"),
    "unknown": ("mask", BOOL, "Xor mask causal"),
    "name_and_graph_differ": ("key_padding_mask", BOOL, "Where key_padding_mask scores never"),
    "numbers_of_that_name": ("padding_mask", INT, "Neg padding_mask"),
}


def interface(name: str, kind: int, text: str) -> ModelInterface:
    """Of a model with such an input; ``text`` is its nodes, which read earlier ones by number."""
    nodes = []
    for place, line in enumerate(text.split("; ")):
        operator, *operands = line.split()
        operands = [f"made_{each}" if each.isdigit() else each for each in operands]
        options = {"to": FLOAT} if operator == "CastFloat" else {}
        operator = operator.removesuffix("Float") if options else operator
        nodes.append(helper.make_node(operator, operands, [f"made_{place}"], **options))
    inputs = [
        helper.make_tensor_value_info("input_ids", INT, ["B", "S"]),
        helper.make_tensor_value_info(name, kind, ["B", "T"]),
        helper.make_tensor_value_info("scores", FLOAT, ["B", "H", "S", "T"]),
        helper.make_tensor_value_info("causal", BOOL, ["S", "T"]),
    ]
    stored = [numpy_helper.from_array(np.float32(each), n) for n, each in NUMBERS.items()]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return ModelInterface.of(ir.from_proto(model))


@pytest.mark.parametrize("case", HIDES)
def test_a_mask_that_is_true_where_nothing_may_look(case):
    mask = interface(*HIDES[case]).attention_mask
    assert mask is not None
    assert mask.hides


@pytest.mark.parametrize("case", SHOWS)
def test_a_mask_that_is_true_where_one_may_look(case):
    mask = interface(*SHOWS[case]).attention_mask
    assert mask is not None
    assert not mask.hides


def with_padding_mask(*, true_is_padding: bool) -> onnx.ModelProto:
    """A block whose mask is ``[B, T]``."""
    model = build(Block(bias="blocked" if true_is_padding else "boolean"))
    old = next(each for each in model.graph.input if each.name.startswith("attention_mask"))
    name = f"{old.name}_of_scores"
    for node in model.graph.node:
        node.input[:] = [name if each == old.name else each for each in node.input]
    new = helper.make_tensor_value_info("mask", BOOL, ["B", "T"])
    old.CopyFrom(new)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes_of_mask"))
    model.graph.node.insert(0, helper.make_node("Unsqueeze", ["mask", "axes_of_mask"], [name]))
    return model


@pytest.mark.parametrize("true_is_padding", [True, False])
def test_models_with_either_are_verified(true_is_padding):
    model = with_padding_mask(true_is_padding=true_is_padding)
    result = mla_opt.optimize(model)
    assert len(result.report.sites) == 1
    for graph in (model, result.model):
        opened = graph if isinstance(graph, ir.Model) else ir.from_proto(graph)
        mask = ModelInterface.of(opened).attention_mask
        assert mask is not None
        assert mask.hides is true_is_padding
