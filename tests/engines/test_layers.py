from __future__ import annotations

from mla_opt.engines.layers import attention_layers, read_layers, written_in_place

DUMP = [
    "Max Scratch Memory: 12 bytes",
    "Layers:\n"
    "Name: __mye1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [],"
    " TacticName: , StreamId: 0, Metadata: \n"
    "Name: scatter_1, LayerType: kgen, Inputs: [ { Name: present.0, Dimensions: [-1,1,8,6] },"
    " { Name: rows, Dimensions: [-1,1,-1,6] }], Constants: [], Outputs: [ { Name: present.0,"
    " Dimensions: [-1,1,8,6] }], TacticName: t, StreamId: 0,"
    " Metadata: [ONNX Layer: a/mla/new_cache/TensorScatter][ONNX Layer: elsewhere]\n"
    "Name: gemm_2, LayerType: gemm, Inputs: [ { Name: q, Dimensions: [-1] }], Constants: [],"
    " Outputs: [ { Name: p, Dimensions: [-1] }], TacticName: t, StreamId: 0,"
    " Metadata: [ONNX Layer: a/mla/products/MatMul]\n"
    "Name: wait_3, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: ,"
    " StreamId: 0, Metadata: [ONNX Layer: a/mla/weights/Softmax]\n"
    "Name: _gemm_mha_v2_4, LayerType: kgen, Inputs: [ { Name: k, Dimensions: [-1] }],"
    " Constants: [], Outputs: [ { Name: o, Dimensions: [-1] }], TacticName: t, StreamId: 0,"
    " Metadata: [ONNX Layer: b/mla/attention/Attention]\n"
    "Name: c/mla/latent_attention/LatentAttention_2, LayerType: PluginV3, Inputs: [ { Name: q,"
    " Location: Device }, { Name: past.1, Location: Device }], Outputs: [ { Name: o, Location:"
    " Device }, { Name: present.1, Location: Device }], TacticValue: 0x0, StreamId: 0,"
    " Metadata: \n"
    "\nI/O Tensors:\n"
    "Name: present.0, LayerType: none, Inputs: [], Outputs: []\n",
]


def test_layers_are_read_from_the_log():
    layers = read_layers(DUMP)
    assert [each.kind for each in layers] == [
        "shape_call",
        "kgen",
        "gemm",
        "wait",
        "kgen",
        "PluginV3",
    ]
    scatter = layers[1]
    assert (scatter.inputs, scatter.outputs) == (("present.0", "rows"), ("present.0",))
    assert scatter.nodes == ("a/mla/new_cache/TensorScatter", "elsewhere")
    assert [each.runs for each in layers] == [False, True, True, False, True, True]


def test_a_log_without_a_list():
    assert read_layers(["nothing", "to see"]) == ()


def test_what_became_of_each_attention():
    layers = read_layers(DUMP)
    (a, c) = attention_layers(layers, ["a", "c"], "decode")
    assert (a.became, a.kernels) == ("operators", ("scatter_1", "gemm_2"))
    assert (c.became, c.kernels) == ("plugin", ("c/mla/latent_attention/LatentAttention_2",))
    (b, missing) = attention_layers(layers, ["b", "nobody"], "prefill")
    assert (b.became, b.kernels) == ("fused", ("_gemm_mha_v2_4",))
    assert (missing.became, missing.kernels) == ("unknown", ())


def test_caches_that_are_written_in_place():
    layers = read_layers(DUMP)
    assert written_in_place(layers, [("past.0", "present.0"), ("past.1", "present.1")])


def test_caches_that_are_copied():
    copied = [line.replace("Name: past.1, Location", "Name: copy, Location") for line in DUMP]
    assert not written_in_place(read_layers(copied), [("past.1", "present.1")])
    assert not written_in_place(read_layers(DUMP), [("past.2", "present.2")])
