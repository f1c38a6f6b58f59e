"""A decoder of one block: token ids in, logits out, dims that the plugin has kernels for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.engines.rtx import DIMS
from tests.graphs.latent_block import TYPES, Block, build

VOCABULARY = 61
#: Small enough that no softmax is all but one key: its choice would flip with the rounding.
TABLE = 0.05


def token_model(path: Path, **options: Any) -> Path:
    """Write `Block` between a table of embeddings and an output layer."""
    block = Block(**{**DIMS["lite"], **options})
    proto = build(block)
    graph, rng = proto.graph, np.random.default_rng(7)
    table, head = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((VOCABULARY, block.hidden), (block.hidden, VOCABULARY))
    )
    (embeddings,) = (each for each in graph.input if each.name == "inputs_embeds")
    (hidden,) = (each for each in graph.output if each.name == "hidden")
    graph.input.remove(embeddings)
    graph.output.remove(hidden)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"])
    logits = helper.make_tensor_value_info("logits", TYPES[block.dtype], ["B", "S", VOCABULARY])
    graph.input.insert(0, ids)
    graph.output.insert(0, logits)
    for array, name in ((table * TABLE, "table"), (head * block.hidden**-0.5, "head")):
        graph.initializer.append(numpy_helper.from_array(array.astype(block.dtype), name))
    graph.node.insert(0, helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"]))
    graph.node.append(helper.make_node("MatMul", ["hidden", "head"], ["logits"]))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path
