"""Look-alikes: one edit away from latent attention, each refused with its own code."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import mla_opt
from mla_opt.errors import Refusal
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.graphs.latent_block import Block, Tape, build
from tests.labels import label
from tests.passes.harness import EXTRACT, assert_same, graph_of, lines, run
from tests.passes.test_absorb_weights import absorbed


def refusals(source: Block | OnnxGraph) -> list[Refusal]:
    graph = source if isinstance(source, OnnxGraph) else graph_of(source)
    return [each for result in run(graph, *EXTRACT) for each in result.refusals]


@dataclass(frozen=True)
class Case:
    code: str
    block: Block
    nodes: tuple[str, ...] = ()
    """Operators that the refusal points to, in its order."""


def edited(point: str, edit: Any, **options: Any) -> Block:
    return Block(**options, edits={point: edit})


def tanh(tape: Tape, value: str) -> str:
    return tape("Tanh", value)


def fused(point: str = "", edit: Any = None, **options: Any) -> Block:
    edits = {point: edit} if point else {}
    return Block(core="fused", opset=23, edits=edits, **options)


# Edits


def on_another_grid(tape: Tape, value: str) -> str:
    """Integers that are read back as other numbers than they were made of."""
    steps = [tape.stored(np.float32(step).reshape(()), f"step_{step}") for step in (0.25, 0.5)]
    zero = tape.stored(np.int8(3).reshape(()), "zero")
    return tape("DequantizeLinear", tape("QuantizeLinear", value, steps[0], zero), steps[1], zero)


def other_layer(tape: Tape, value: str) -> str:
    """Values of a linear layer of their own."""
    block = tape.block
    return _heads(tape, _own_row(tape), block.value)


def own_keys(tape: Tape, value: str) -> str:
    return _heads(tape, _own_row(tape), tape.block.width)


def own_rope(tape: Tape, value: str) -> str:
    """A rotary part per head, from a layer of its own."""
    return _heads(tape, _own_row(tape), tape.block.rope)


def _own_row(tape: Tape) -> str:
    block = tape.block
    width = block.latent
    made = tape("MatMul", "inputs_embeds", tape.weight("own_a.weight", block.hidden, width))
    return tape("Unsqueeze", made, tape.ints(1))


def _heads(tape: Tape, row: str, width: int) -> str:
    block = tape.block
    weight = tape.weight(f"own_{width}.weight", block.latent, block.heads * width)
    made = tape("Reshape", tape("MatMul", row, weight), tape.ints(0, -1, block.heads, width))
    return tape("Transpose", made, perm=[0, 2, 1, 3])


def weight_as_input(tape: Tape, value: str) -> str:
    block = tape.block
    width = block.heads * (block.nope + block.value)
    return tape.input("kv_weight", (block.latent, width))


def one_head(tape: Tape, value: str) -> str:
    return tape("Slice", value, tape.ints(0), tape.ints(1), tape.ints(1))


def unknown(tape: Tape, value: str) -> str:
    """A row of unknown shape: what Compress keeps depends on the data."""
    keep = tape.input("keep", ("S",), TensorProto.BOOL)
    return tape("Compress", value, keep, axis=2)


def scaled_by_projection(tape: Tape, value: str) -> str:
    """The query depends on what the layer of keys and values makes."""
    return tape("Mul", value, tape("ReduceSum", "made_0", keepdims=0))


def from_the_layer_again(tape: Tape, value: str) -> str:
    """The query is made by the layer of keys and values, called once more on another row."""
    block = tape.block
    made = block.nope + block.value
    weight = tape.weight("kv_b_proj.weight", block.latent, block.heads * made)
    rows = tape(
        "Reshape", tape("MatMul", _own_row(tape), weight), tape.ints(0, -1, block.heads, made)
    )
    heads = tape("Transpose", rows, perm=[0, 2, 1, 3])
    return tape("Slice", heads, tape.ints(0), tape.ints(block.width), tape.ints(3))


def turned_tokens(tape: Tape, value: str) -> str:
    """Values in reverse order of tokens: linear, narrow, and wrong."""
    backwards = (tape.ints(-1), tape.ints(-(2**31)), tape.ints(2), tape.ints(-1))
    return tape("Slice", value, *backwards)


def grown_by_heads(name: str) -> Any:
    """A cache that has one more head, not more tokens."""

    def grown(tape: Tape, value: str) -> str:
        width = tape.block.value if name == "values" else tape.block.width
        past = tape.input(f"past.0.{name}", ("B", 1, "S", width))
        joined = tape("Concat", past, value, axis=1)
        tape.output(joined, f"present.0.{name}", ("B", 1 + tape.block.heads, "S", width))
        present = f"present.0.{name}"
        return tape("Slice", present, tape.ints(1), tape.ints(99), tape.ints(1))

    return grown


def window(tape: Tape, value: str) -> str:
    """The last few tokens only."""
    return tape("Slice", value, tape.ints(-9), tape.ints(2**31), tape.ints(2))


def far_ones_weaker(tape: Tape, value: str) -> str:
    """Half of the numbers of every token after the 64th."""
    first, others = _parted(tape, value)
    return tape("Concat", first, tape("Mul", others, tape.scalar(0.5)), axis=2)


def far_ones_first(tape: Tape, value: str) -> str:
    return tape("Concat", *reversed(_parted(tape, value)), axis=2)


def _parted(tape: Tape, value: str) -> tuple[str, str]:
    first = tape("Slice", value, tape.ints(0), tape.ints(64), tape.ints(2))
    return first, tape("Slice", value, tape.ints(64), tape.ints(2**31), tape.ints(2))


def weight_of_rank_3(tape: Tape, value: str) -> str:
    whole = tape.numbers("kv_b_proj.weight", 12, 42)
    return tape.stored(whole[None], tape.named("kv_b_proj.stacked"))


def tokens_first(tape: Tape, value: str) -> str:
    """`[B, T, 1, C]`."""
    return tape("Transpose", value, perm=[0, 2, 1, 3])


def without_batch(tape: Tape, value: str) -> str:
    return tape("Squeeze", value, tape.ints(0))


def past_read_again(tape: Tape, value: str) -> str:
    return tape("Add", value, tape("ReduceSum", "past.0.keys", keepdims=0))


def joined_again(tape: Tape, value: str) -> str:
    """Only the values have a cache."""
    past = tape.input("past.0.values", ("B", tape.block.heads, "P", tape.block.value))
    joined = tape("Concat", past, value, axis=2)
    tape.output(joined, "present.0.values", ("B", tape.block.heads, "T", tape.block.value))
    return "present.0.values"


def not_returned(tape: Tape, value: str) -> str:
    """What the attention reads is joined once more, and not what is returned."""
    node = next(each for each in tape.nodes if each.output[0] == value)
    return tape("Concat", *node.input, axis=2)


def softcapped(tape: Tape, value: str) -> str:
    node = tape.nodes[-1]
    node.attribute.add(name="softcap", type=1, f=30.0)
    return value


def scores_read(tape: Tape, value: str) -> str:
    """The probabilities of the fused node are an output too."""
    node = tape.nodes[-1]
    node.output.extend(["", "", "weights"])
    node.attribute.add(name="qk_matmul_output_mode", type=2, i=3)
    tape.output("weights", "weights", ("B", tape.block.heads, "S", "T"))
    return value


def own_cache(tape: Tape, value: str) -> str:
    """The fused node joins the past itself."""
    block = tape.block
    node = tape.nodes[-1]
    past = [
        tape.input(f"past.own.{part}", ("B", block.heads, "Q", width))
        for part, width in (("key", block.width), ("value", block.value))
    ]
    node.input.extend(["", *past])
    node.output.extend(["present_key", "present_value"])
    tape.output("present_key", "present.own.key", ("B", block.heads, "Q+S", block.width))
    tape.output("present_value", "present.own.value", ("B", block.heads, "Q+S", block.value))
    return value


def rank_3(tape: Tape, value: str) -> str:
    """Operands `[B, S, H D]`."""
    block = tape.block
    node = tape.nodes.pop()
    flat = []
    for index, width in enumerate((block.width, block.width, block.value)):
        turned = tape("Transpose", node.input[index], perm=[0, 2, 1, 3])
        flat.append(tape("Reshape", turned, tape.ints(0, -1, block.heads * width)))
    made = tape("Attention", *flat, scale=0.3, q_num_heads=block.heads, kv_num_heads=block.heads)
    heads = tape("Reshape", made, tape.ints(0, -1, block.heads, block.value))
    return tape("Transpose", heads, perm=[0, 2, 1, 3])


def of_hidden(tape: Tape, value: str) -> str:
    """The projection reads the hidden state itself: ordinary attention."""
    return tape("Unsqueeze", "inputs_embeds", tape.ints(1))


NONE = {"cache": "none"}


def own_causal_cache(tape: Tape, value: str) -> str:
    """The same with a causal mask."""
    own_cache(tape, value)
    tape.nodes[-1].attribute.add(name="is_causal", type=2, i=1)
    return value


def more_keys_than_queries(tape: Tape, value: str) -> str:
    """A causal mask over past keys and more new ones than there are queries."""
    own_causal_cache(tape, value)
    node = tape.nodes.pop()
    for place in (1, 2):
        node.input[place] = tape("Concat", *[node.input[place]] * 2, axis=2)
    tape.nodes.append(node)
    return value


CASES = [
    Case("unsupported_attention", fused("attention", softcapped, **NONE)),
    Case("unsupported_attention", fused("attention", scores_read, **NONE)),
    Case("unsupported_attention", fused("attention", more_keys_than_queries, bias=None, **NONE)),
    Case("causal_alignment", fused(bias=None, causal=True), ("Attention",)),
    Case("not_linear", edited("value", tanh), ("Tanh",)),
    Case("not_linear", edited("key", tanh), ("Tanh",)),
    Case("activations_quantized", edited("value", on_another_grid), ("DequantizeLinear",)),
    Case("projection_not_constant", edited("kv_weight", weight_as_input), ("MatMul",)),
    Case("no_shared_projection", edited("values", lambda tape, value: _mixed(tape, value))),
    Case("separate_projections", edited("value", other_layer)),
    Case("separate_projections", edited("key", own_keys)),
    Case("rope_per_head", edited("key_rope", own_rope)),
    Case("rope_per_head", edited("key_rope", tanh), ("Tanh",)),
    Case("query_from_latent", edited("query", scaled_by_projection), ("Concat",)),
    Case("cache_of_one_half", edited("value", joined_again, cache="none", bias=None)),
    Case("cache_not_returned", edited("keys", not_returned, cache="expanded")),
    Case("latent_not_narrower", Block(heads=1, nope=6, value=6, latent=12)),
    Case(
        "no_shared_projection",
        Block(
            cache="none",
            bias=None,
            edits={"key": grown_by_heads("keys"), "value": grown_by_heads("values")},
        ),
    ),
    Case("cache_read_twice", edited("projected", past_read_again, cache="expanded")),
    Case("tokens_apart", Block(bias=None, edits={"keys": window, "values": window}), ("Slice",)),
    Case("tokens_apart", edited("key", far_ones_weaker), ("Concat",)),
    Case("tokens_apart", edited("key", far_ones_first, cache="expanded"), ("Concat",)),
    Case("tokens_apart", edited("keys", far_ones_weaker, cache="expanded"), ("Concat",)),
    Case("tokens_apart", edited("key_rope", far_ones_weaker), ("Concat",)),
    Case("tokens_apart", edited("value", far_ones_weaker), ("Concat",)),
    Case("tokens_apart", edited("values", turned_tokens, cache="none", bias=None), ("Slice",)),
    Case("unknown_shape", edited("latent", unknown, cache="none", bias=None)),
]

#: Other ways to write the real thing.
FOUND = [
    fused("attention", rank_3, bias=None, **NONE),
    edited("query", from_the_layer_again),
    edited("values", one_head),
    edited("kv_weight", weight_of_rank_3),
    edited("latent", tokens_first),
    edited("values", without_batch, batch=1),
]


def _mixed(tape: Tape, value: str) -> str:
    """Half of the values from another layer."""
    half = tape.block.value // 2
    first, _ = tape("Split", value, tape.ints(half, half), outputs=2, axis=3)
    second = tape.input("values_given", ("B", tape.block.heads, "T", half))
    return tape("Concat", first, second, axis=3)


def _name(case: Case) -> str:
    return "-".join([case.code, *_edits(case.block)]).replace("<lambda>", "")


def _edits(block: Block) -> list[str]:
    return [each.__name__ for each in block.edits.values() if hasattr(each, "__name__")]


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_a_look_alike_is_refused(case):
    graph = graph_of(case.block)
    before = lines(graph.model)
    (refusal,) = refusals(graph)
    assert refusal.code == case.code, refusal
    assert graph.sites == []
    assert lines(graph.model) == before
    assert refusal.site == "layers.0.self_attn"
    assert refusal.reason[0].islower()
    assert not refusal.reason.endswith(".")
    operators = tuple(label.rpartition("(")[2].rstrip(")") for label in refusal.nodes)
    if case.nodes:
        assert operators == case.nodes


@pytest.mark.parametrize("block", FOUND, ids=lambda block: "-".join(_edits(block)))
def test_another_way_of_writing_is_the_same(block):
    graph = absorbed(block)
    assert len(graph.sites) == 1
    assert_same(block, graph.model, sizes=((1, 4, 3), (1, 5, 0)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "expanded"},
        {"cache": "none"},
        {"cache": "packed"},
        {"core": "fused", "opset": 23},
        {"core": "fused", "opset": 24, "bias": "boolean"},
        {"core": "fused", "opset": 23, "bias": None, "causal": True, "cache": "none"},
        {"keys": "scatter"},
        {"keys": "scatter", "cache": "expanded"},
        {"q_lora": None},
        {"rope": 0},
        {"row_rank": 3},
        {"storage": "dequantized"},
        {"storage": "transposed"},
        {"value_bias": True},
        {"dtype": "float16"},
        {"batch": 1, "query_len": 1},
        {"batch": 1, "query_len": 4, "past_len": 8},
        {"layers": 2},
        {"layers": 2, "share": True},
        {"sink": True, "guarded": True},
        {"order": tuple(reversed(range(12)))},
    ],
    ids=label,
)
def test_the_real_thing_is_not_refused(options):
    assert refusals(Block(**options)) == []


def smoothed(tape: Tape, value: str) -> str:
    factors = np.linspace(0.5, 2.0, tape.block.latent, dtype=np.float32)
    return tape("Mul", value, tape.stored(factors, "smooth"))


def halved_and_smoothed(tape: Tape, value: str) -> str:
    turned = tape("Transpose", tape("Mul", value, tape.scalar(0.5)), perm=[0, 1, 3, 2])
    factors = np.linspace(0.5, 2.0, tape.block.latent, dtype=np.float32)[:, None]
    divided = tape("Div", turned, tape.stored(factors, "smooth"))
    return tape("Transpose", divided, perm=[0, 1, 3, 2])


def smoothed_by_an_input(tape: Tape, value: str) -> str:
    return tape("Mul", value, tape.input("smooth", (tape.block.latent,)))


def rope_smoothed(tape: Tape, value: str) -> str:
    """Only ``k_pe``, which has no matrix that could take the factors."""
    width = tape.block.rope
    if not value.endswith(".values"):
        return value
    factors = np.linspace(0.5, 2.0, width, dtype=np.float32)
    return tape("Mul", value, tape.stored(factors, "smooth"))


@pytest.mark.parametrize(
    ("point", "edit", "held"),
    [
        ("latent", smoothed, 2),
        ("latent", halved_and_smoothed, 2),
        ("latent", smoothed_by_an_input, 0),
        ("joined", rope_smoothed, 0),
    ],
)
def test_factors_of_cached_rows_belong_to_the_matrices_behind_them(point, edit, held):
    """If they are stored: then the cache is what the operator reads."""
    block = edited(point, edit)
    graph = absorbed(block)
    (site,) = graph.sites
    assert len(site.held) == held
    assert_same(block, graph.model, sizes=((1, 4, 3), (2, 1, 5)))


def of_an_image(tape: Tape, value: str) -> str:
    """Rows of another input, as many for every sequence."""
    block = tape.block
    image = tape.input("image", (block.batch, 9, block.hidden))
    weight = tape.weight("image.weight", block.hidden, block.latent)
    return tape("Unsqueeze", tape("Tanh", tape("MatMul", image, weight)), tape.ints(1))


def test_rows_may_be_of_a_fixed_number():
    block = Block(cache="none", rope=0, bias=None, edits={"c_kv": of_an_image})
    assert refusals(block) == []


def packed_with_the_next(tape: Tape, value: str) -> str:
    """One layer makes the keys and values of both attentions of the shared row."""
    block = tape.block
    if tape.layer:
        return "packed.1"
    latent, _ = tape.nodes.pop().input
    weight = tape.weight(
        "packed.weight", block.latent, 2 * block.heads * (block.nope + block.value)
    )
    made = tape("MatMul", latent, weight)
    return tape("Split", made, name="packed", outputs=2, axis=3, num_outputs=2)[0]


def test_projections_of_shared_rows_may_be_one_layer():
    """The second query depends on that layer, but only through the first attention."""
    block = Block(layers=2, share=True, edits={"made": packed_with_the_next})
    graph = graph_of(block)
    assert refusals(graph) == []
    assert len(graph.sites) == 2
    matrices = [site.weights.w_uk for site in graph.sites]
    assert not np.array_equal(*matrices)
    report = mla_opt.optimize(build(block)).report
    assert report.verification["passed"]


def test_a_refusal_says_what_would_change_it():
    (refusal,) = refusals(edited("kv_weight", weight_as_input))
    assert refusal.remedy == "store the projection weight in the model"


ORDINARY = Block(q_lora=None, latent=20, rope=0, cache="none", row_rank=3)


def test_ordinary_attention_is_told_from_latent_attention():
    """Keys, values and query of one row, the hidden state: narrower, and yet no latent."""
    (refusal,) = refusals(replace(ORDINARY, edits={"c_kv": lambda tape, row: "inputs_embeds"}))
    assert refusal.code == "query_from_latent"


def test_ordinary_attention_is_told_apart_through_layout():
    (refusal,) = refusals(replace(ORDINARY, row_rank=4, edits={"c_kv": of_hidden}))
    assert refusal.code == "query_from_latent"


def test_every_code_that_is_written_is_tested():
    """A refusal that no test provokes is a promise that nothing keeps."""
    written = set()
    for folder in ("matching", "passes"):
        for path in (Path(mla_opt.__file__).parent / folder).glob("*.py"):
            text = path.read_text()
            calls = re.findall(r"(?:NotLatentError\(|Refusal\(\s*[\w.]+,)\s*([^,]+),", text)
            written.update(code for call in calls for code in re.findall(r'"([a-z_]+)"', call))
            written.update(re.findall(r'code = "(\w+)"', text))
    elsewhere = {
        "query_from_latent",  # the last two tests here
        "latent_per_head",  # tests.axes.test_lookalikes
        "finite_fill",  # test_fills_with_numbers_beside_something_else
        "head_count",  # no exporter leaves it open; the reader of products needs a number
        "certificate_failed",  # test_certificate
        "rope_in_values",  # test_extraction
        "rope_mixed",  # test_extraction, tests/axes/test_ways_of_k_pe
        "sink_with_key_bias",  # tests/axes/test_lookalikes
        "sink_with_value_bias",  # tests/axes/test_lookalikes
        "region_not_closed",  # test_extract_weights
        "fold_blocked",  # test_choose_form
        "cache_not_recognized",  # test_compress_cache
        "cache_type_kept",  # test_narrow_cache
        "cache_in_place",  # tests/axes/test_buffer_modules
        "inputs_not_understood",  # test_find_latent_attention
        "cache_axes",  # tests/axes/test_caches
        "cache_positions",  # tests/axes/test_caches
        "buffer_bias",  # tests/axes/test_caches
        "rows_flattened",  # tests/axes/test_flat_rows
        "k_pe",  # no code
    }
    assert written - elsewhere == {case.code for case in CASES} - elsewhere
    assert len(written) > 20


@pytest.mark.parametrize(
    "options", [{"bias": "both"}, {"bias": "boolean", "sink": True}], ids=label
)
def test_fills_with_numbers_beside_something_else_are_refused(options):
    """What a query without a key attends to then depends on what is added."""
    (refusal,) = refusals(Block(fill=-1e9, **options))
    assert refusal.code == "finite_fill"
    assert "minus infinity" in refusal.remedy
