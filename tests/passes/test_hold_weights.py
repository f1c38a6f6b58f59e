from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import mla_opt
from mla_opt import aside
from mla_opt.graphs.onnx import stored_rows
from mla_opt.operator import kv_b
from mla_opt.operator.kv_b import KvB, Storage
from mla_opt.operator.multi_head import INPUTS
from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.hold_weights import HoldWeights
from mla_opt.passes.write_cache_in_place import WriteCacheInPlace
from tests.graphs.latent_block import Block, build
from tests.passes.harness import (
    assert_close,
    assert_generates_same,
    check,
    generate,
    graph_of,
    prepared,
    run,
)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Rows are worked on a few at a time, as those of large models are."""
    monkeypatch.setattr(kv_b, "_PART", 4)
    monkeypatch.setattr(stored_rows, "_ROWS", 5)


STEPS = ("absorb_weights", "release_shapes", "fuse_cache_append")
BLOCK = Block(latent=32)


def held(source, *steps, mode: str = "keep", prefill: str = "auto"):
    graph = prepared(source, CompressCache(mode), *STEPS, *steps, prefill=prefill, held=True)
    (result,) = run(graph, HoldWeights())
    run(graph, "clean_up")
    return graph, result


def operator(graph) -> ir.Node:
    (node,) = (node for node in graph.model.graph if node.domain == "mla_opt")
    return node


def content(node: ir.Node, name: str) -> np.ndarray:
    place = INPUTS.index(name)
    value = node.inputs[place] if place < len(node.inputs) else None
    return None if value is None else value.const_value.numpy()


def quantized(block: Block, storage: Storage, seed: int = 0) -> tuple[onnx.ModelProto, KvB]:
    """The model of a block whose kv_b is packed, and that kv_b."""
    proto = build(block)
    (node,) = (node for node in proto.graph.node if node.output[0] == "made_0")
    random = np.random.default_rng(seed)
    rows, columns = block.heads * (block.nope + block.value), block.latent
    blocks = columns // storage.block_size
    each = storage.block_size * storage.bits // 8
    codes = random.integers(0, 256, (rows, blocks, each)).astype(np.uint8)
    scales = (random.uniform(0.5, 1.5, (rows, blocks)) * 2.0**-storage.bits).astype(np.float32)
    zeros = None
    if storage.zero_points == "packed":
        width = -(-blocks * storage.bits // 8)
        zeros = random.integers(0, 256, (rows, width)).astype(np.uint8)
    given = {"codes": codes, "scales": scales.reshape(-1), "zeros": zeros}
    stored = {name: tensor for name, tensor in given.items() if tensor is not None}
    proto.graph.initializer.extend(
        numpy_helper.from_array(tensor, name) for name, tensor in stored.items()
    )
    node.CopyFrom(
        helper.make_node(
            "MatMulNBits",
            [node.input[0], *stored],
            node.output,
            name=node.name,
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=storage.bits,
            block_size=storage.block_size,
        )
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto, KvB(storage, codes, scales, zeros)


STORAGES = [
    Storage(bits=4, block_size=16),
    Storage(bits=4, block_size=16, zero_points="packed"),
    Storage(bits=4, block_size=32, zero_points="packed"),
    Storage(bits=8, block_size=16, zero_points="packed"),
]


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.overload)
@pytest.mark.parametrize("prefill", ["absorbed", "expanded", "auto"])
def test_packed_weights_stay_bit_for_bit(storage, prefill):
    proto, kept = quantized(BLOCK, storage)
    graph, result = held(proto, prefill=prefill)
    assert (result.matched, result.rewritten) == (1, 1)
    node = operator(graph)
    assert node.op_type == "MultiHeadLatentAttention"
    assert node.attributes["form"].as_string() == prefill
    for name, tensor in kept.operands().items():
        np.testing.assert_array_equal(content(node, name), tensor)
    stored = graph.model.graph.initializers.values()
    floats = [value.const_value.size for value in stored if value.dtype == ir.DataType.FLOAT]
    assert kept.numbers(BLOCK.latent).size not in floats
    for seen, wanted in zip(generate(graph.model, BLOCK), generate(proto, BLOCK)):
        assert_close(seen, wanted, 1e-5, storage.overload)


@pytest.mark.parametrize("cache", ["packed", "static:16"])
@pytest.mark.parametrize("cache_type", ["float16", "bfloat16", "int8", "fp8"])
def test_weights_stay_in_their_bits_beside_rows_of_fewer(cache_type, cache):
    """Passes before this one drop the nodes that the matrices were read by."""
    proto, kept = quantized(BLOCK, STORAGES[0])
    made = mla_opt.optimize(proto, cache=cache, cache_type=cache_type, verify=False).model
    (node,) = (node for node in made.graph if node.domain == "mla_opt")
    for name, tensor in kept.operands().items():
        np.testing.assert_array_equal(content(node, name), tensor)


def test_the_report_counts_what_both_models_store():
    proto, kept = quantized(BLOCK, STORAGES[0])
    made = [mla_opt.optimize(proto, weights=each, verify=False) for each in ("keep", "float")]
    for each in made:
        stored = each.model.graph.initializers.values()
        assert each.report.stored.after == sum(value.const_value.nbytes for value in stored)
    keep, floats = (each.report.stored for each in made)
    assert keep.before == floats.before >= keep.after
    more = 4 * kept.numbers(BLOCK.latent).size - kept.nbytes
    assert more <= floats.after - keep.after < more + 128  # and the shapes of two products


def test_the_report_says_how_many_bytes():
    proto, kept = quantized(BLOCK, STORAGES[0])
    _, result = held(proto)
    (note,) = result.notes
    floats = 4 * kept.numbers(BLOCK.latent).size
    assert f"(packed4_16): {kept.nbytes / 1e6:.2f} MB; as float32 {floats / 1e6:.2f} MB" in note


def test_matrices_take_no_memory_between_the_layers(monkeypatch):
    """They lie in a file from when they are read off the graph, and are let go of when held."""
    monkeypatch.setattr(aside, "IN_MEMORY", 0)
    monkeypatch.setattr(aside, "LARGE", 1)
    let_go = []
    monkeypatch.setattr(aside.Aside, "let_go", lambda self: let_go.append(self))
    graph, _ = held(build(dataclasses.replace(BLOCK, layers=2)))
    assert len(let_go) == len(graph.sites) == 2
    assert all(aside.pages_of(site.weights.by_head) is not None for site in graph.sites)


@pytest.mark.parametrize("mode", ["keep", "packed"])
@pytest.mark.parametrize("bias", ["additive", "boolean", None])
@pytest.mark.parametrize("storage", ["matmul", "dequantized"])
def test_it_generates_the_same(mode, bias, storage):
    block = Block(bias=bias, sink=bias is None, causal=bias is None, storage=storage)
    graph, _ = held(block, mode=mode)
    assert_generates_same(block, graph.model)


@pytest.mark.parametrize("prefill", ["absorbed", "expanded"])
def test_both_forms_on_static_caches(prefill):
    """The buffers of a static cache are expanded, too."""
    block = Block()
    graph, _ = held(block, WriteCacheInPlace(16), mode="static", prefill=prefill)
    node = operator(graph)
    assert [value.name for value in node.inputs[3:5]] == ["past.0.latent", "past_len"]
    assert str(node.outputs[1].shape) == "[B,1,16,16]"


def test_int8_of_a_dequantize_linear_stays_int8():
    graph, _ = held(Block(storage="dequantized"))
    node = operator(graph)
    assert content(node, "kv_b").dtype == np.int8
    assert node.attributes["block_size"].as_int() == Block().latent


def test_floats_stay_floats_and_16_bits_16_bits():
    def halves(tape, weight):
        content = tape.numbers("kv_b_proj.weight", 12, 42).astype(np.float16)
        stored = tape.stored(content, tape.named("halves"))
        return tape("Cast", stored, to=TensorProto.FLOAT)

    for edits, dtype in (({}, np.float32), ({"kv_weight": halves}, np.float16)):
        graph, _ = held(Block(edits=edits))
        assert content(operator(graph), "kv_b").dtype == dtype


def test_other_numbers_in_the_same_bits_are_not_taken_for_them():
    """A matrix of the same shape elsewhere, and one whose last number is another."""
    storage = STORAGES[0]
    proto, kept = quantized(BLOCK, storage)
    numbers = kept.numbers(BLOCK.latent)
    graph = graph_of(proto)
    assert graph.stored_rows(numbers) is not None
    changed = numbers.copy()
    changed[-1, -1] += 1e-4 * np.abs(numbers).max()
    assert graph.stored_rows(changed) is None
    assert graph.stored_rows(numbers[:, :-1]) is None
    _, other = quantized(BLOCK, storage, seed=1)
    assert graph.stored_rows(other.numbers(BLOCK.latent)) is None


def scaled(stored: np.ndarray, factors: np.ndarray):
    """A weight that the graph makes of codes, one factor a block of them."""

    def edit(tape, weight):
        codes = tape.stored(stored, tape.named("codes"))
        wide = tape("Cast", codes, to=TensorProto.FLOAT)
        return tape("Mul", wide, tape.stored(factors.astype(np.float32), tape.named("factors")))

    return edit


def kv_b_codes(dtype) -> np.ndarray:
    """Codes as the Linear of a block stores them, ``[C, H (N + V)]``."""
    random = np.random.default_rng(5)
    shape = (BLOCK.latent, BLOCK.heads * (BLOCK.nope + BLOCK.value))
    return (random.standard_normal(shape) * 30).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn, np.float16])
@pytest.mark.parametrize(("blocks", "group"), [(1, 1), (2, 1), (2, 7), (1, 42)])
def test_codes_with_factors_stay_as_they_are(dtype, blocks, group):
    """A factor a row, a block, a block of several rows and a matrix: all become scales."""
    codes = kv_b_codes(dtype)
    width, rows = codes.shape
    random = np.random.default_rng(1)
    of_blocks = random.uniform(0.5, 1.5, (blocks, rows // group)) / 200
    factors = of_blocks.repeat(width // blocks, axis=0).repeat(group, axis=1)
    block = dataclasses.replace(BLOCK, opset=21, edits={"kv_weight": scaled(codes, factors)})
    graph, _ = held(block)
    node = operator(graph)
    assert content(node, "kv_b").dtype == dtype
    np.testing.assert_array_equal(content(node, "kv_b").astype(np.float64), codes.T)
    assert node.attributes["block_rows"].as_int() == group
    assert node.attributes["block_size"].as_int() == width // blocks
    np.testing.assert_allclose(content(node, "kv_b_scales"), of_blocks.T, rtol=3e-7)
    assert_generates_same(block, graph.model)


@pytest.mark.parametrize("storage", STORAGES[:3], ids=lambda storage: storage.overload)
def test_factors_of_rows_go_into_the_scales_of_packed_weights(storage):
    proto, kept = quantized(BLOCK, storage)
    factors = np.random.default_rng(2).uniform(0.5, 1.5, (len(kept.codes), 1))
    rows = (kept.numbers(BLOCK.latent) * factors).astype(np.float32)
    graph = graph_of(proto)
    assert graph.stored_rows(rows) is None
    found = graph.scaled_rows(rows)
    np.testing.assert_array_equal(found.codes, kept.codes)
    np.testing.assert_allclose(found.scales, kept.scales * factors, rtol=3e-7)
    rows[:, 3] *= 1.5
    assert graph.scaled_rows(rows) is None


def test_a_number_that_is_no_multiple_of_its_code_shows():
    codes = kv_b_codes(np.int8)
    graph = graph_of(
        dataclasses.replace(BLOCK, edits={"kv_weight": scaled(codes, np.ones((1, 1)))})
    )
    rows = codes.T.astype(np.float32) * 0.125
    assert graph.scaled_rows(rows) is not None
    rows[-1, -1] += 1e-4
    assert graph.scaled_rows(rows) is None
    assert graph.scaled_rows(np.random.default_rng(0).standard_normal(rows.shape)) is None


def test_rows_in_another_order_are_found_in_that_order():
    storage = STORAGES[1]
    proto, kept = quantized(BLOCK, storage)
    order = np.random.default_rng(3).permutation(len(kept.codes))
    found = graph_of(proto).stored_rows(kept.numbers(BLOCK.latent)[order])
    for tensor, wanted in zip(found.operands().values(), kept.operands().values()):
        np.testing.assert_array_equal(tensor, wanted[order])


def test_the_graph_is_valid_with_two_layers():
    graph, result = held(Block(layers=2, share=True))
    assert result.rewritten == 2
    check(graph.model)
    assert_generates_same(Block(layers=2, share=True), graph.model)


@pytest.mark.parametrize("cache", ["keep", "static:16"])
def test_verification_notices_broken_copies(cache):
    proto, _ = quantized(BLOCK, STORAGES[1])
    result = mla_opt.optimize(proto, weights="keep", cache=cache)
    controls = mla_opt.verify(proto, result.model).controls
    assert {control.name: control.detected for control in controls} == {
        "scale": True,
        "rope": True,
        "heads": True,
    }
    (told,) = mla_opt.inspect(result.model).operators
    widths = (told.num_heads, told.qk_nope_head_dim, told.qk_rope_head_dim, told.v_head_dim)
    assert (*widths, told.kv_lora_rank, told.form) == (3, 8, 4, 6, 32, "factored")


@pytest.mark.parametrize("bias", ["boolean", None])
def test_a_bias_of_values_is_added(bias):
    block = Block(value_bias=True, bias=bias)
    graph, _ = held(block)
    assert_generates_same(block, graph.model)


def per_channel(name: str):
    """Multiply each number of what is read by a stored one, as a smoothing in front of a layer."""

    def edit(tape, value):
        factors = np.random.default_rng(len(name)).uniform(0.5, 2.0, BLOCK.latent)
        return tape("Mul", value, tape.stored(factors.astype(np.float32), tape.named(name)))

    return edit


def drop_unread(graph: onnx.GraphProto) -> None:
    """Take out nodes and stored tensors that nothing reads."""
    read = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if read & set(node.output):
            read.update(node.input)
    for kept in (graph.node, graph.initializer):
        names = [set(getattr(each, "output", ()) or [each.name]) for each in kept]
        for place in reversed([place for place, own in enumerate(names) if not own & read]):
            del kept[place]


def apart(storages, smooths) -> tuple[onnx.ModelProto, list[KvB]]:
    """A model whose keys and values come from a packed layer each, of smoothed rows if named."""
    kept = [
        quantized(dataclasses.replace(BLOCK, nope=width, value=0), storage, seed=width)[1]
        for width, storage in zip((BLOCK.nope, BLOCK.value), storages)
    ]

    def edit(tape, parts):
        made = []
        for half, (each, smooth) in enumerate(zip(kept, smooths)):
            rows = "present.0.keys" if smooth is None else smooth(tape, "present.0.keys")
            stored = [
                tape.stored(tensor if place == 0 else tensor.reshape(-1), f"{name}_{half}")
                for place, (name, tensor) in enumerate(each.operands().items())
            ]
            storage, count = each.storage, len(each.codes)
            how = {"K": BLOCK.latent, "N": count, "bits": storage.bits}
            how["block_size"] = storage.block_size
            flat = tape("MatMulNBits", rows, *stored, domain="com.microsoft", **how)
            heads = tape("Reshape", flat, tape.ints(0, -1, BLOCK.heads, count // BLOCK.heads))
            made.append(tape("Transpose", heads, perm=[0, 2, 1, 3]))
        return made

    proto = build(dataclasses.replace(BLOCK, edits={"parts": edit}))
    drop_unread(proto.graph)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto, kept


def by_head(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(BLOCK.heads, -1, *tensor.shape[1:])


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.overload)
@pytest.mark.parametrize(
    "smooths",
    [(None, None), ("of_keys", None), ("of_keys", "values"), ("same", "same")],
    ids=str,
)
def test_keys_and_values_of_layers_of_their_own_stay_bit_for_bit(smooths, storage):
    """Each layer may have factors of its own in front of it, one for each number of c_kv."""
    edits = [None if name is None else per_channel(name) for name in smooths]
    proto, (of_keys, of_values) = apart((storage, storage), edits)
    graph, result = held(proto)
    node, (note,) = operator(graph), result.notes
    for name, tensor in of_keys.operands().items():
        halves = [by_head(tensor), by_head(of_values.operands()[name])]
        np.testing.assert_array_equal(by_head(content(node, name)), np.concatenate(halves, axis=1))
    factors = content(node, "kv_b_factors")
    assert (factors is not None) == any(smooths) == ("times stored factors" in note)
    for seen, wanted in zip(generate(graph.model, BLOCK), generate(proto, BLOCK)):
        assert_close(seen, wanted, 1e-5, storage.overload)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("way", ["in front", "of columns", "divided"])
def test_factors_of_all_columns_stay_beside_the_codes(way, dtype):
    """In front of the layer, behind the cache, and in the layer's own weight."""
    codes, random = kv_b_codes(dtype), np.random.default_rng(8)
    of_rows = random.uniform(0.5, 1.5, (1, codes.shape[1])) / 200
    of_columns = random.uniform(0.5, 2.0, (codes.shape[0], 1)).astype(np.float32)

    def weight(tape, value):
        made = scaled(codes, of_rows)(tape, value)
        if way == "in front":
            return made
        if way == "of columns":
            return tape("Mul", tape.stored(of_columns, "smooth"), made)
        return tape("Div", made, tape.stored(1 / of_columns, "smooth"))

    def latent(tape, value):
        return tape("Mul", value, tape.stored(of_columns[:, 0], "smooth"))

    edits = {"kv_weight": weight, "latent": latent} if way == "in front" else {"kv_weight": weight}
    block = dataclasses.replace(BLOCK, opset=21, edits=edits)
    graph, _ = held(block)
    node = operator(graph)
    np.testing.assert_array_equal(content(node, "kv_b").astype(np.float64), codes.T)
    assert node.inputs[INPUTS.index("cache")].is_graph_input()
    for row in content(node, "kv_b_factors"):
        np.testing.assert_allclose(row, of_columns[:, 0], rtol=3e-7)
    assert_generates_same(block, graph.model)


def test_scales_of_columns_are_factors():
    """A DequantizeLinear whose scales are those of the numbers that the layer reads."""
    codes = kv_b_codes(np.int8)
    scales = np.random.default_rng(6).uniform(0.5, 2.0, len(codes)).astype(np.float32) / 60

    def weight(tape, value):
        stored = tape.stored(codes, "codes"), tape.stored(scales, "scales")
        return tape("DequantizeLinear", *stored, axis=0)

    block = dataclasses.replace(BLOCK, edits={"kv_weight": weight})
    graph, _ = held(block)
    node = operator(graph)
    np.testing.assert_array_equal(content(node, "kv_b"), codes.T)
    np.testing.assert_array_equal(content(node, "kv_b_factors"), [scales, scales])
    assert_generates_same(block, graph.model)


def test_factors_that_are_others_are_not_taken_for_those_of_the_columns():
    """One number of the rows is another; one of the factors is 0: the rows become floats."""
    edits = [per_channel("of_keys"), per_channel("values")]
    proto, kept = apart((STORAGES[1], STORAGES[1]), edits)
    graph = graph_of(proto)
    factors = np.random.default_rng(len("of_keys")).uniform(0.5, 2.0, BLOCK.latent)
    rows = (kept[0].numbers(BLOCK.latent) * factors).astype(np.float32)
    found, of_columns = graph.factored_rows(rows)
    np.testing.assert_array_equal(found.codes, kept[0].codes)
    np.testing.assert_allclose(of_columns, factors, rtol=1e-7)
    changed = rows.copy()
    changed[-1, -1] += 1e-4 * np.abs(rows).max()
    assert graph.factored_rows(changed) is None

    def with_zero(tape, value):
        numbers = np.ones(BLOCK.latent, np.float32)
        numbers[3] = 0
        return tape("Mul", value, tape.stored(numbers, "zero"))

    proto, _ = apart((STORAGES[1], STORAGES[1]), [with_zero, None])
    graph, _ = held(proto)
    assert content(operator(graph), "kv_b").dtype == np.float32


def test_keys_and_values_that_are_stored_in_two_ways_become_floats():
    proto, _ = apart((STORAGES[0], STORAGES[3]), (None, None))
    graph, _ = held(proto)
    assert content(operator(graph), "kv_b").dtype == np.float32


@pytest.mark.parametrize("cache", ["keep", "static:40"])
def test_factors_at_real_head_widths_are_verified(cache, monkeypatch):
    """Keys and values of 4 bits, with factors of their own: as they are, in 1.01 times the file."""
    real = Block(heads=4, nope=128, rope=64, value=128, latent=512, hidden=8, q_lora=None)
    monkeypatch.setitem(globals(), "BLOCK", real)
    storage = Storage(bits=4, block_size=32)
    proto, _ = apart((storage, storage), [per_channel("of_keys"), per_channel("values")])
    result = mla_opt.optimize(proto, weights="keep", cache=cache)
    assert result.report.stored.after <= 1.01 * result.report.stored.before
    assert "packed4_32 times stored factors" in result.report.sites[0].notes[-1]
    controls = mla_opt.verify(proto, result.model).controls
    assert all(control.detected for control in controls)
