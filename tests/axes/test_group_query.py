"""ONNX Runtime's GroupQueryAttention: ragged batches, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import mla_opt
from mla_opt import passes
from mla_opt.emission.written_out import draft_written_out
from mla_opt.errors import InputError, NothingMatchedError, PassError, RefusedError
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.axes.feeding import Array
from tests.axes.harness import SIZES, Runner, equal_or_refused, understand
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

HEADS, LATENT, HIDDEN = 4, 16, 12
PROMPTS = (4, 2, 3)
STEPS = 3


def of_heads(*, real: bool = False) -> onnx.ModelProto:
    """Keys and values of every head in caches that grow; how long sequences are is an input."""
    size = "real" if real else "eights"
    plan = Plan(product="group_query", cache="expanded", size=size)
    model = build(settled(plan))
    _node(model).input[5:] = ["seqlens_k", "total_sequence_length"]
    _with_lengths(model)
    return model


def by_hand(capacity: int | None = None) -> onnx.ModelProto:
    """Absorbed by hand: the rows are the keys and the values of the one head that all share."""
    rng = np.random.default_rng(3)
    weights = {
        "w_q": rng.standard_normal((HIDDEN, HEADS * LATENT)),
        "w_kv": rng.standard_normal((HIDDEN, LATENT)),
        "w_o": rng.standard_normal((HEADS * LATENT, HIDDEN)) / 8,
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w_q"], ["query"]),
        node("MatMul", ["x", "w_kv"], ["projected"]),
        node("Tanh", ["projected"], ["rows"]),
        node(
            "GroupQueryAttention",
            [
                "query",
                "rows",
                "rows",
                "past_key",
                "past_value",
                "seqlens_k",
                "total_sequence_length",
            ],
            ["context", "present_key", "present_value"],
            name="attention",
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=1,
            scale=0.2,
        ),
        node("MatMul", ["context", "w_o"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    past, present = ([end if capacity is None else capacity for end in "PT"]) or ()
    inputs = [value("x", 1, ["B", "S", HIDDEN])]
    inputs += [value(f"past_{word}", 1, ["B", 1, past, LATENT]) for word in ("key", "value")]
    outputs = [value("y", 1, ["B", "S", HIDDEN])]
    outputs += [value(f"present_{word}", 1, ["B", 1, present, LATENT]) for word in ("key", "value")]
    stored = [
        numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items()
    ]
    graph = helper.make_graph(nodes, "absorbed", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    _with_lengths(model)
    return model


def _node(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == "GroupQueryAttention")


def _with_lengths(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info
    model.graph.input.extend([value("seqlens_k", TensorProto.INT32, ["B"])])
    model.graph.input.extend([value("total_sequence_length", TensorProto.INT32, [])])


def calls(hidden: int, late: int) -> Iterator[tuple[dict[str, Array], Array]]:
    """Prompts padded at their end, then steps of one token; which queries are valid.

    Steps that are ``late`` are put where rows of the past are, and see fewer keys.
    """
    rng = np.random.default_rng(5)
    lengths, width = np.array(PROMPTS), max(PROMPTS)
    for step in range(STEPS + 1):
        count = width if step == 0 else 1
        lengths = lengths + (step > 0)
        given = {
            "x": rng.standard_normal((len(lengths), count, hidden)).astype(np.float32),
            "seqlens_k": (lengths - 1 - late * (step > 0)).astype(np.int32),
            "total_sequence_length": np.array(lengths.max(), np.int32),
        }
        valid = np.arange(count) < (lengths[:, None] if step == 0 else 1)
        yield given, np.broadcast_to(valid, (len(lengths), count))


def outputs(model: onnx.ModelProto, rows: int, late: int = 0) -> list[Array]:
    """Valid outputs of every call; caches begin with some rows of zeros."""
    runner = Runner(model, understand(model))
    ports = {port.name: port for port in runner.inputs.ports}
    pasts = [name for name in ports if name.startswith("past")]
    caches = {}
    for name in pasts:
        heads, _, width = ports[name].axes[1:]
        caches[name] = np.zeros((len(PROMPTS), int(heads), rows, int(width)), np.float32)
    made = []
    for given, valid in calls(int(ports["x"].axes[-1]), late):
        found = runner.run({**given, **caches})
        made.append(found["y"][valid])
        caches = {name: found[name.replace("past", "present", 1)] for name in pasts}
    return made


FORMS = {
    "of heads": (of_heads(), 0),
    "of heads, with room": (of_heads(), 9),
    "by hand": (by_hand(), 0),
    "by hand, with room": (by_hand(), 9),
    "by hand, of one capacity": (by_hand(9), 9),
}


@pytest.mark.parametrize("cache", ["keep", "packed"])
@pytest.mark.parametrize(("model", "rows"), FORMS.values(), ids=FORMS)
def test_ragged_batches(model: onnx.ModelProto, rows: int, cache: str) -> None:
    result = mla_opt.optimize(model, cache=cache, verify=False)
    assert len(result.report.sites) == 1
    _compare(model, ir.to_proto(result.model), rows)


def test_a_ragged_batch_at_the_widths_of_released_models() -> None:
    model = of_heads(real=True)
    _compare(model, ir.to_proto(mla_opt.optimize(model, verify=False).model), 0)


@pytest.mark.parametrize("model", [by_hand(), by_hand(9)], ids=["growing", "of one capacity"])
def test_lengths_as_inputs_are_fed_to_verify(model: onnx.ModelProto) -> None:
    report = mla_opt.optimize(model).report
    assert report.verification["passed"]


@pytest.mark.parametrize("late", [1, 2])
def test_new_rows_over_rows_of_the_past(late: int) -> None:
    model = by_hand()
    _compare(model, ir.to_proto(mla_opt.optimize(model, verify=False).model), 9, late)


def _compare(model: onnx.ModelProto, made: onnx.ModelProto, rows: int, late: int = 0) -> None:
    assert "GroupQueryAttention" not in {node.op_type for node in made.graph.node}
    for expected, seen in zip(outputs(model, rows, late), outputs(made, rows, late)):
        np.testing.assert_allclose(seen, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("by hand")])
@pytest.mark.parametrize("capacity", ["", ":12"])
def test_ragged_batches_in_place(name: str, capacity: str) -> None:
    model, rows = FORMS[name]
    made = ir.to_proto(mla_opt.optimize(model, cache=f"static{capacity}", verify=False).model)
    assert "ScatterElements" not in {node.op_type for node in made.graph.node}
    assert [each.name for each in made.graph.output] == ["y", "present_key"]
    _compare_in_place(model, made, rows, 12)


def test_ragged_batches_in_place_at_the_widths_of_released_models() -> None:
    plan = Plan(product="group_query", cache="static_expanded", size="real")
    outcome = equal_or_refused(build(settled(plan)), sizes=SIZES[1:2], cache="static")
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


def _compare_in_place(
    model: onnx.ModelProto, made: onnx.ModelProto, rows: int, capacity: int
) -> None:
    assert "past_len" not in {each.name for each in made.graph.input}
    for expected, seen in zip(outputs(model, rows), outputs(made, capacity)):
        np.testing.assert_allclose(seen, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_buffer_whose_rows_are_counted_cannot_be_static() -> None:
    """Positions are counted by the shape of the past: rows that are none would count."""
    with pytest.raises(RefusedError, match="cache_not_recognized"):
        mla_opt.optimize(of_heads(), cache="static", verify=False)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_an_engine_counts_rows_by_past_len_alone(phase: str) -> None:
    with pytest.raises(InputError, match="seqlens_k"):
        mla_opt.optimize(by_hand(), target="tensorrt", phase=phase, cache="static:12", verify=False)


def test_a_buffer_that_no_pass_writes_is_none() -> None:
    names = [name for name in passes.names(static=True) if name != "write_cache_in_place"]
    with pytest.raises(PassError, match="write_cache_in_place"):
        mla_opt.optimize(by_hand(), cache="static", passes=names, verify=False)


@pytest.mark.parametrize("asked", [{"target": "portable"}, {"absorb": "fold"}])
def test_ragged_batches_in_place_in_other_forms(asked: dict[str, str]) -> None:
    model = by_hand()
    made = ir.to_proto(mla_opt.optimize(model, cache="static", verify=False, **asked).model)
    _compare_in_place(model, made, 0, 12)


def test_operators_that_may_mask_otherwise_cannot_be_static() -> None:
    with pytest.raises(RefusedError, match="cache_not_recognized"):
        mla_opt.optimize(written_out(), cache="static", verify=False)


def written_out() -> onnx.ModelProto:
    """The same in separate operators, as the optimizer reads it."""
    graph = OnnxGraph(ir.from_proto(by_hand()))
    (node,) = (each for each in graph.nodes() if each.op_type == "GroupQueryAttention")
    draft_written_out(graph, node, graph.operation(node))
    graph.refresh()
    graph.prune()
    return ir.to_proto(graph.model)


def _zero(model: onnx.ModelProto) -> onnx.TensorProto:
    """What the room behind the past is filled with."""
    (room,) = (each for each in model.graph.node if each.output[0].endswith("column_of_zeros"))
    return next(each for each in model.graph.initializer if each.name == room.input[0])


def test_room_behind_the_past_is_read() -> None:
    model = written_out()
    assert not numpy_helper.to_array(_zero(model)).any()
    made = ir.to_proto(mla_opt.optimize(model, verify=False).model)
    assert [len(each.graph.input) for each in (model, made)] == [5, 4]
    _compare(model, made, 9)


def _filled(model: onnx.ModelProto) -> None:
    zero = _zero(model)
    zero.CopyFrom(numpy_helper.from_array(np.ones((), np.float32), zero.name))


def _in_front(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Concat" and node.output[0].endswith("_with_room"):
            node.input[:] = node.input[::-1]


@pytest.mark.parametrize("change", [_filled, _in_front])
def test_room_that_is_none_is_refused(change: Callable[[onnx.ModelProto], None]) -> None:
    model = written_out()
    change(model)
    with pytest.raises(NothingMatchedError):
        mla_opt.optimize(model, verify=False)


BEYOND = {
    "softcap": {"softcap": 30.0},
    "local_window_size": {"local_window_size": 3},
    "smooth_softmax": {"smooth_softmax": 1},
    "do_rotary": {"do_rotary": 1},
    "causal": {"causal": 0},
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_it_does_beyond_that_is_refused_by_name(name: str) -> None:
    model = by_hand()
    _node(model).attribute.extend(
        helper.make_attribute(key, value) for key, value in BEYOND[name].items()
    )
    assert name in _refused(model)


@pytest.mark.parametrize(("place", "name"), [(7, "cos_cache"), (10, "attention_bias")])
def test_operands_that_are_not_read_are_refused_by_name(place: int, name: str) -> None:
    model = by_hand()
    inputs = _node(model).input
    inputs.extend([""] * (place - len(inputs)) + ["other"])
    model.graph.input.extend([helper.make_tensor_value_info("other", 1, [4, 8])])
    assert name in _refused(model)


def test_packed_operands_are_refused() -> None:
    model = by_hand()
    _node(model).input[1:3] = ["", ""]
    assert "three operands" in _refused(model)


def _refused(model: onnx.ModelProto) -> str:
    with pytest.raises(NothingMatchedError) as caught:
        mla_opt.optimize(model, verify=False)
    (refusal,) = caught.value.report.refusals
    assert refusal.code == "unsupported_attention"
    return refusal.reason
