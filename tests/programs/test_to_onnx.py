"""An optimized program on its way to ONNX: the node and the body that optimizing the file gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import mla_opt
from tests.exports.cache import exported
from tests.exports.spec import ExportSpec
from tests.programs import exporting

OPTIONS = {
    "LatentAttention": {"prefill": "absorbed", "weights": "float"},
    "MultiHeadLatentAttention": {},
}


# `tests/torch_operator/test_to_onnx.py` has both by themselves.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param("LatentAttention", marks=pytest.mark.sweep),
        "MultiHeadLatentAttention",
    ],
)
def operator(request):
    return request.param


@pytest.fixture(scope="module")
def translated(tmp_path_factory, operator):
    path = tmp_path_factory.mktemp("program") / "model.onnx"
    given = exporting.program("deepseek_v3")
    result = mla_opt.optimize(given, verify=False, **OPTIONS[operator])
    program = torch.onnx.export(
        result.model,
        custom_translation_table=mla_opt.onnx_translation_table(),
        opset_version=23,  # the first whose attention takes a boolean mask, as the program has it
        verbose=False,
    )
    mla_opt.attach_function_bodies(program)
    program.save(path)
    return path


def _rounded(value):
    """The scale comes in two float32 halves from one exporter and whole from the other."""
    return round(value, 6) if isinstance(value, float) else value


def fused(model, operator):
    """Attributes and present operands of every fused node, and the bodies by their names."""
    nodes = [node for node in model.graph.node if node.op_type == operator]
    calls = [
        (
            {each.name: _rounded(onnx.helper.get_attribute_value(each)) for each in node.attribute},
            [bool(name) for name in node.input],
            len(node.output),
        )
        for node in nodes
    ]
    bodies = {
        each.name: [(node.op_type, len(node.input)) for node in each.node]
        for each in model.functions
        if each.domain == "mla_opt"
    }
    return calls, bodies


def test_nodes_and_bodies_are_those_of_the_optimized_file(translated, operator):
    calls, bodies = fused(onnx.load(translated), operator)
    spec = ExportSpec("deepseek_v3", opset=23)
    file = mla_opt.optimize(exported(spec), verify=False, **OPTIONS[operator]).model
    wanted_calls, wanted_bodies = fused(ir.to_proto(file), operator)
    assert len(calls) == 2
    assert calls == wanted_calls
    assert [each for _, each in sorted(bodies.items())] == [
        each for _, each in sorted(wanted_bodies.items())
    ]


@pytest.mark.parametrize("kernel", [False, True])
def test_it_runs_with_and_without_the_kernel(translated, kernel):
    options = onnxruntime.SessionOptions()
    if kernel:
        options.register_custom_ops_library(str(mla_opt.kernel_library()))
    session = onnxruntime.InferenceSession(translated, options, providers=["CPUExecutionProvider"])
    flat = exporting.model("deepseek_v3")
    for sizes in exporting.SIZES:
        given = exporting.arguments(flat, sizes)
        feeds = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), given)}
        with torch.no_grad():
            expected = [each.numpy() for each in flat(*given)]
        for seen, wanted in zip(session.run(None, feeds), expected, strict=True):
            assert np.abs(seen - wanted).max() < 1e-4
