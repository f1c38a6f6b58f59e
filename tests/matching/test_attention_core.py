"""Reading attentions off graphs: scales, masks, sinks and guards, however they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mla_opt.matching.attention_core import attention_cores
from mla_opt.sites import AttentionCore
from tests.graphs.latent_block import Block, Tape
from tests.passes.harness import graph_of, run


def cores(**options: Any) -> list[AttentionCore]:
    return [read.core for read in attention_cores(graph_of(Block(**options)))]


def core(**options: Any) -> AttentionCore:
    (found,) = cores(**options)
    return found


def bias(found: AttentionCore) -> list[tuple[str, str]]:
    return [(term.kind, term.value.name) for term in found.bias]


def test_an_eager_attention():
    found = core()
    assert (found.query.name, found.output.name) == ("query_0", "context_0")
    assert found.value.name.startswith("split")
    assert found.scale == pytest.approx(0.37)
    assert (found.sink, found.causal, found.unsupported) == (None, False, "")
    assert [node.op_type for node in found.nodes] == ["MatMul", "Mul", "Add", "Softmax", "MatMul"]
    assert (found.first, found.last) == (found.nodes[0], found.nodes[-1])


def test_a_fused_attention():
    found = core(core="fused", opset=23)
    assert (found.query.name, found.output.name) == ("query_0", "context_0")
    assert found.scale == pytest.approx(0.37)
    assert found.first is found.last is found.nodes[0]


def test_a_fused_attention_without_scale_has_that_of_its_keys():
    def plain(tape: Tape, value: str) -> str:
        del tape.nodes[-1].attribute[:]
        return value

    found = core(core="fused", opset=23, edits={"attention": plain})
    assert found.scale == pytest.approx(12**-0.5)


@pytest.mark.parametrize("place", ["scores", "divided", "query", "key", "both"])
def test_the_scale_is_found_wherever_it_is(place):
    found = core(scale_on=place)
    assert found.scale == pytest.approx(0.37)
    assert found.query.name == "query_0"


def test_a_factor_on_the_keys_heads_is_not_of_the_core():
    assert core(scale_on="key_heads").scale == 1.0


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        (None, []),
        ("additive", [("additive", "attention_mask")]),
        ("boolean", [("boolean", "attention_mask_allowed")]),
        ("blocked", [("blocked", "attention_mask_blocked")]),
        ("both", [("boolean", "attention_mask_allowed"), ("additive", "attention_mask")]),
    ],
)
def test_masks(kind, terms):
    assert bias(core(bias=kind)) == terms


@pytest.mark.parametrize("kind", ["additive", "boolean"])
def test_the_mask_of_a_fused_node_may_be_of_either_kind(kind):
    (term,) = core(core="fused", opset=23, bias=kind).bias
    assert term.kind == "either"


def test_a_mask_that_chooses_an_ordinary_number_is_no_mask():
    def half_masked(tape: Tape, scores: str) -> str:
        mask = tape.input("choice", ("B", 1, "S", "T"), TensorProto.BOOL)
        return tape("Where", mask, scores, tape.scalar(-3.0))

    assert cores(edits={"masked": half_masked}) == []


def test_a_factor_outside_of_an_addend_scales_the_addend():
    found = core(edits={"masked": lambda tape, x: tape("Mul", x, tape.scalar(2.0))})
    assert found.scale == pytest.approx(0.74)
    assert [(term.kind, term.factor) for term in found.bias] == [("additive", 2.0)]


@pytest.mark.parametrize(("factor", "fill"), [(2.0, float("-inf")), (-1.0, None), (0.0, None)])
def test_a_factor_outside_of_a_mask_has_to_keep_what_is_forbidden(factor, fill):
    found = cores(bias="boolean", edits={"masked": lambda t, x: t("Mul", x, t.scalar(factor))})
    assert [term.fill for each in found for term in each.bias] == ([] if fill is None else [fill])


def test_a_factor_that_lets_a_mask_through_is_refused():
    def scaled(tape: Tape, scores: str) -> str:
        mask = tape.input("choice", ("B", 1, "S", "T"), TensorProto.BOOL)
        masked = tape("Where", mask, scores, tape.scalar(-1e5))
        return tape("Mul", masked, tape.scalar(0.01))

    assert cores(bias=None, edits={"masked": scaled}) == []


def test_a_factor_on_the_probabilities_is_no_attention():
    assert cores(edits={"probabilities": lambda tape, x: tape("Mul", x, tape.scalar(2.0))}) == []


def the_largest(tape: Tape, probabilities: str) -> str:
    """All but the 64 largest made zero: nothing changes where there are fewer."""
    count = tape("Shape", probabilities, start=3, end=4)
    count = tape("Min", count, tape.ints(64))
    largest, _ = tape("TopK", probabilities, count, outputs=2)
    least = tape("ReduceMin", largest, tape.ints(-1), keepdims=1)
    kept = tape("GreaterOrEqual", probabilities, least)
    return tape("Where", kept, probabilities, tape.scalar(0.0))


def a_window(tape: Tape, probabilities: str) -> str:
    """Those of the first 64 keys: nothing changes where there are no others."""
    total = tape("Squeeze", tape("Shape", probabilities, start=3, end=4), tape.ints(0))
    zero = tape.stored(np.asarray(0, dtype=np.int64), "int_zero")
    one = tape.stored(np.asarray(1, dtype=np.int64), "int_one")
    beyond = tape("GreaterOrEqual", tape("Range", zero, total, one), tape.ints(64))
    return tape("Where", beyond, tape.scalar(0.0), probabilities)


def not_of_them(tape: Tape, probabilities: str) -> str:
    """Zero where something else is not a number."""
    scores = tape.nodes[-1].input[0]
    return tape("Where", tape("IsNaN", scores), tape.scalar(0.0), probabilities)


def not_zero(tape: Tape, probabilities: str) -> str:
    return tape("Where", tape("IsNaN", probabilities), tape.scalar(0.25), probabilities)


@pytest.mark.parametrize("edit", [the_largest, a_window, not_of_them, not_zero])
def test_a_selection_among_the_probabilities_is_another_attention(edit):
    """A certificate on seven tokens would not tell."""
    assert cores(edits={"probabilities": edit}) == []


@pytest.mark.parametrize("options", [{}, {"opset": 17}, {"sink": True}, {"dtype": "float16"}])
def test_guards_change_nothing(options):
    plain, guarded = core(**options), core(guarded=True, **options)
    assert guarded.scale == plain.scale
    assert bias(guarded) == bias(plain)
    assert guarded.query.name == plain.query.name
    assert (guarded.sink is None) == (plain.sink is None)
    assert len(guarded.nodes) > len(plain.nodes)


def widened(*points: str) -> dict[str, Any]:
    """A block of 16 bits whose attention computes in 32, cast at these places."""

    def wider(tape: Tape, value: str) -> str:
        return tape("Cast", value, to=TensorProto.FLOAT, name=f"{value}_wide")

    def narrower(tape: Tape, value: str) -> str:
        return tape("Cast", value, to=TensorProto.FLOAT16, name="narrow")

    edits = {point: narrower if point == "context" else wider for point in points}
    return {"dtype": "float16", "bias": None, "scale_on": "none", "edits": edits}


def test_casts_around_an_attention_are_part_of_it():
    found = core(**widened("query", "keys", "values", "context"))
    assert (found.query.name, found.output.name) == ("query_0", "narrow")
    assert found.last.op_type == "Cast"
    assert found.nodes[-1] is found.last


def test_an_attention_that_stays_wide_is_read_as_it_is():
    found = core(**widened("query", "keys", "values"))
    assert (found.query.name, found.output.name) == ("query_0_wide", "context_0")
    assert found.last.op_type == "MatMul"


def test_a_sink_is_the_stored_vector_behind_a_column():
    found = core(sink=True)
    stored = found.sink.name
    assert stored == "model.layers.0.self_attn.sinks" or stored.startswith("reshape")
    assert bias(found) == [("additive", "attention_mask")]


def test_a_computed_column_is_no_sink():
    def column(tape: Tape, scores: str) -> str:
        extra = tape("ReduceMax", scores, tape.ints(-1), keepdims=1)
        return tape("Concat", scores, extra, axis=3)

    assert cores(edits={"masked": column}) == []


def test_less_than_the_maximum_subtracted_is_a_bias_that_keys_make():
    """As such it is refused, for it is computed from the rows."""

    def shifted(tape: Tape, scores: str) -> str:
        return tape("Sub", scores, tape("Tanh", scores))

    found = core(edits={"masked": shifted})
    assert [term.factor for term in found.bias] == [1.0, -1.0]
    (result,) = run(graph_of(Block(edits={"masked": shifted})), "find_latent_attention")
    assert [refusal.code for refusal in result.refusals] == ["query_from_latent"]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_only_the_maximum_of_the_keys_drops_out(axis):
    def shifted(tape: Tape, scores: str) -> str:
        top = tape("ReduceMax", scores, tape.ints(axis), keepdims=1)
        return tape("Sub", scores, top)

    found = core(edits={"masked": shifted}, opset=18)
    assert len(found.bias) == (1 if axis == 3 else 2)


def test_a_maximum_that_sinks_are_not_lowered_by_does_not_drop_out():
    def shifted(tape: Tape, scores: str) -> str:
        return tape("Sub", scores, tape("ReduceMax", scores, tape.ints(-1), keepdims=1))

    assert cores(sink=True, edits={"masked": shifted}, opset=18) == []


@pytest.mark.parametrize("axis", [1, 2])
def test_a_softmax_over_another_axis_is_not_that_of_the_values(axis):
    def turned(tape: Tape, scores: str) -> str:
        tape.nodes[-1].attribute[0].i = axis
        return scores

    (read,) = attention_cores(graph_of(Block(edits={"probabilities": turned})))
    assert read.axes.apart


def test_a_softmax_alone_is_no_attention():
    def classes(tape: Tape, value: str) -> str:
        return tape("Softmax", value, axis=-1)

    assert len(cores(edits={"projected": classes})) == 1


def test_attentions_come_in_graph_order():
    assert [each.output.name for each in cores(layers=3)] == [f"context_{i}" for i in range(3)]


def test_masks_are_told_by_what_they_choose_and_not_by_their_names():
    def swapped(tape: Tape, scores: str) -> str:
        mask = tape.input("attention_mask_allowed", ("B", 1, "S", "T"), TensorProto.BOOL)
        lowest = tape.stored(np.asarray([np.finfo(np.float32).min]), "lowest")
        return tape("Where", mask, lowest, scores)

    found = core(bias=None, edits={"masked": swapped})
    assert bias(found) == [("blocked", "attention_mask_allowed")]
