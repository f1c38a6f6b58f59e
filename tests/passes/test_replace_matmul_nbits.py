"""Which MatMulNBits the kernel library runs, and that the model computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

import mla_opt
from mla_opt.errors import InputError
from mla_opt.graphs.onnx.local_functions import inlined
from mla_opt.handles import Array
from mla_opt.operator.matmul_nbits import SCALES, has_kernel, is_nbits
from mla_opt.options import Options
from mla_opt.programs.program_options import program_options
from mla_opt.verification import verify_by_layer
from mla_opt.verification.onnx.same_weights import with_weights_of
from tests.graphs.latent_block import Block, build, feeds
from tests.kernels.host import run as run_with_kernels
from tests.kernels.host import session
from tests.kernels.test_matmul_nbits import needs_vnni
from tests.operator.test_matmul_nbits import Layer
from tests.quantization.checks import check_verified, run

BLOCK = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=96, q_lora=32, opset=21)
REAL = Block(heads=4, nope=128, rope=64, value=128, latent=512, hidden=256, q_lora=192, opset=21)


def quantized(block: Block, accuracy: int | None = 4) -> onnx.ModelProto:
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=accuracy)
    quantizer = MatMulNBitsQuantizer(build(block), algo_config=config)
    quantizer.process()
    model: onnx.ModelProto = quantizer.model.model
    return model


def narrowed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With scales that are float16 numbers."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scales"):
            numbers = onnx.numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    return model


def operators(model: ir.Model) -> tuple[list[ir.Node], list[ir.Node]]:
    """This library's, and ONNX Runtime's."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type == "MatMulNBits"]
    return [n for n in nodes if is_nbits(n)], [n for n in nodes if not is_nbits(n)]


def worst(before: dict[str, Array], after: dict[str, Array]) -> float:
    """Root mean square of the error, of the spread."""
    return max(
        float(np.sqrt(np.mean((before[name] - after[name]) ** 2)) / before[name].std())
        for name in before
    )


def test_only_where_it_is_asked_for() -> None:
    model = quantized(BLOCK)
    kept = mla_opt.optimize(model, verify=False)
    ours, theirs = operators(kept.model)
    assert (len(ours), len(theirs)) == (0, 4)
    assert any("4 MatMulNBits of accuracy level 4 are left" in note for note in kept.report.notes)
    result = mla_opt.optimize(model, matmul_nbits="kernel", verify=False)
    ours, theirs = operators(result.model)
    assert (len(ours), len(theirs)) == (4, 0)
    (record,) = [each for each in result.report.passes if each.name == "replace_matmul_nbits"]
    assert (record.matched, record.rewritten) == (4, 4)
    assert result.report.options["matmul_nbits"] == "kernel"
    assert not result.report.notes


@pytest.mark.parametrize("scales", ["float32", "float16"])
def test_without_the_library_nothing_changes(scales: str) -> None:
    model = quantized(BLOCK) if scales == "float32" else narrowed(quantized(BLOCK))
    kept = mla_opt.optimize(model, verify=False)
    result = mla_opt.optimize(model, matmul_nbits="kernel", verify=False)
    ours, _ = operators(result.model)
    kinds = {node.inputs[SCALES].dtype for node in ours if node.inputs[SCALES] is not None}
    assert kinds == {ir.DataType[scales.upper().replace("FLOAT32", "FLOAT")]}
    saved = kept.report.stored.after - result.report.stored.after
    assert saved == sum(2 * node.inputs[SCALES].const_value.size for node in ours) * (
        scales == "float16"
    )
    fed = feeds(BLOCK, 2, 3, 5)
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    before = run(ir.to_proto(kept.model), fed)
    for name, made in run(proto, fed).items():
        np.testing.assert_array_equal(made, before[name])


@pytest.mark.parametrize("extent", [True, "by-layer"])
def test_it_is_verified(extent: Any) -> None:
    report = check_verified(narrowed(quantized(BLOCK)), matmul_nbits="kernel", verify=extent)
    assert report.verification is not None
    drift = {each["name"]: each for each in report.verification["drift"]["outputs"]}
    if extent is True:
        assert 1e-4 < drift["hidden"]["optimized"] < 0.1


@needs_vnni
@pytest.mark.parametrize("sizes", [(1, 1, 9), (2, 40, 0), (2, 3, 40)], ids=str)
def test_real_widths_with_the_kernel(sizes: tuple[int, int, int]) -> None:
    """Step, prompt and chunk: no further from float activations than ONNX Runtime's operator."""
    model = quantized(REAL)
    result = mla_opt.optimize(model, matmul_nbits="kernel", verify=False)
    fed = feeds(REAL, *sizes)
    exact = run(quantized(REAL, None), fed)
    runtime = session(ir.to_proto(result.model))
    returned = [output.name for output in runtime.get_outputs()]
    made = dict(zip(returned, run_with_kernels(runtime, fed)))
    rounded = run(model, fed)
    assert 1e-4 < worst(exact, made) < 1.2 * worst(exact, rounded)


@pytest.mark.parametrize(
    "layer",
    [
        Layer(accuracy_level=0),
        Layer(accuracy_level=1),
        Layer(bits=2),
        Layer(block_size=16),
    ],
    ids=str,
)
def test_what_the_kernel_has_not(layer: Layer) -> None:
    (node,) = layer.model().graph
    assert not has_kernel(node)


def test_float_zero_points_computed_weights_and_g_idx_are_left() -> None:
    (node,) = Layer(zero_points=True).model().graph
    assert has_kernel(node)
    zeros = node.inputs[3]
    assert zeros is not None
    zeros.type = ir.TensorType(ir.DataType.FLOAT)
    assert not has_kernel(node)
    for place in (1, 2):
        (node,) = Layer().model().graph
        node.replace_input_with(place, ir.Value(name="computed"))
        assert not has_kernel(node)
    (node,) = Layer().model().graph
    node.resize_inputs(5)
    node.replace_input_with(4, ir.Value(name="order"))
    assert not has_kernel(node)


def test_those_that_stay_are_told() -> None:
    model = quantized(BLOCK)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and "made" not in node.output[0]:
            (level,) = [each for each in node.attribute if each.name == "accuracy_level"]
            level.i = 1
            break
    result = mla_opt.optimize(model, matmul_nbits="kernel", verify=False)
    ours, theirs = operators(result.model)
    assert (len(ours), len(theirs)) == (3, 1)
    (record,) = [each for each in result.report.passes if each.name == "replace_matmul_nbits"]
    assert record.notes[0].startswith("1 of 4 MatMulNBits stay ONNX Runtime's")


def test_shared_scales_stay_as_they_are() -> None:
    """A tensor that somebody else reads would be stored twice."""
    model = narrowed(quantized(BLOCK))
    first = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    scales = first.input[2]
    model.graph.node.append(onnx.helper.make_node("Identity", [scales], ["copied"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("copied", onnx.TensorProto.FLOAT, None)
    )
    result = mla_opt.optimize(model, matmul_nbits="kernel", verify=False)
    ours, _ = operators(result.model)
    kinds = {n.inputs[SCALES].name: n.inputs[SCALES].dtype for n in ours}
    assert kinds.pop(scales) is ir.DataType.FLOAT
    assert set(kinds.values()) == {ir.DataType.FLOAT16}


def test_what_comes_out_is_declared() -> None:
    """ONNX Runtime infers it of its own operator only, and exports do not always say it."""
    model = quantized(BLOCK)
    del model.graph.value_info[:]
    ours, _ = operators(mla_opt.optimize(model, matmul_nbits="kernel", verify=False).model)
    for node in ours:
        (product,) = node.outputs
        assert product.dtype is ir.DataType.FLOAT
    fed = [node for node in ours if node.inputs[0] is not None and node.inputs[0].is_graph_input()]
    assert fed
    for node in fed:
        shape = node.outputs[0].shape
        assert shape is not None
        assert shape[-1] == node.attributes["N"].as_int()


def test_it_is_read_as_what_it_stands_for() -> None:
    """By whoever reads the model again, compares it layer by layer, or borrows its weights."""
    model = quantized(BLOCK)
    optimized = mla_opt.optimize(model, matmul_nbits="kernel", verify=False).model
    assert operators(inlined(optimized))[0] == []
    _, borrowed = with_weights_of(ir.from_proto(build(BLOCK)), optimized)
    assert borrowed == 4
    assert model == quantized(BLOCK)  # with whose weights both are made
    report = verify_by_layer(model, optimized)
    assert report.passed, report.failures
    assert report.layers == 1  # the attention, and no layer that is quantized


@needs_vnni
def test_verification_with_the_library_compares_float_activations() -> None:
    """Which the kernel does not have, so ONNX Runtime's operator stands in."""
    model = quantized(BLOCK)
    optimized = mla_opt.optimize(model, matmul_nbits="kernel", verify=False).model
    report = mla_opt.verify(model, optimized, libraries=[mla_opt.kernel_library()])
    assert report.passed, report.failures
    assert max(output.relative for output in report.outputs) < 2e-4


def test_a_model_without_latent_attention_is_left() -> None:
    result = mla_opt.optimize(
        Layer().model("B"), matmul_nbits="kernel", allow_unmatched=True, verify=False
    )
    ours, theirs = operators(result.model)
    assert (len(ours), len(theirs)) == (0, 1)


def test_programs_have_none() -> None:
    with pytest.raises(InputError, match="matmul_nbits 'kernel' is not for PyTorch programs"):
        program_options(Options(matmul_nbits="kernel"))


def test_an_optimized_model_is_looked_into() -> None:
    result = mla_opt.optimize(quantized(BLOCK), matmul_nbits="kernel", verify=False)
    (told,) = mla_opt.inspect(result.model).operators
    assert (told.kv_lora_rank, told.num_heads) == (BLOCK.latent, BLOCK.heads)
