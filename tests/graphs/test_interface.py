from __future__ import annotations

import time

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import UNKNOWN_SIZE, KnownStates, Limits, ModelInterface

INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
IDS = ("input_ids", INT, ["B", "S"])
LOGITS = ("logits", FLOAT, ["B", "S", 23])


def read(inputs, outputs, nodes=(), initializers=(), **options):
    """The interface of a model of these value infos; its outputs need not be computed."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        list(initializers),
    )
    return ModelInterface.of(ir.from_proto(helper.make_model(graph)), **options)


def past(sizes, source="past.0.keys", target="present.0.keys", axis=2):
    """A state of these sizes, joined to new rows along `axis`."""
    grown = [*sizes[:axis], "grown", *sizes[axis + 1 :]]
    node = helper.make_node("Concat", [source, "new"], [target], axis=axis)
    return (source, FLOAT, sizes), (target, FLOAT, grown), node


def one_state(sizes, **names):
    source, target, node = past(sizes, **names)
    (state,) = read([IDS, source], [LOGITS, target], [node]).states
    return state


def roles(port):
    return [axis.role for axis in port.axes]


# -- states ------------------------------------------------------------------------------------


def test_state_is_paired_by_structure_whatever_it_is_called():
    state = one_state(["B", 1, "P", 48], source="alpha", target="omega")
    assert (state.input.name, state.output.name, state.kind) == ("alpha", "omega", "growing")
    assert roles(state.input) == ["batch", "free", "past_len", "free"]


def test_structure_outranks_names():
    keys, keys_out, first = past(["B", 1, "P", 8], "past.0.keys", "present.0.values")
    values, values_out, second = past(["B", 1, "P", 8], "past.0.values", "present.0.keys")
    found = read([IDS, keys, values], [LOGITS, keys_out, values_out], [first, second]).states
    pairs = {s.input.name: s.output.name for s in found}
    assert pairs == {"past.0.keys": "present.0.values", "past.0.values": "present.0.keys"}


def test_growing_axis_of_an_indexer_cache_without_heads():
    assert one_state(["B", "P", 16], axis=1).growth_axis == 1


def test_growing_axis_of_a_permuted_cache():
    state = one_state(["P", "B", 48], axis=0)
    assert roles(state.input) == ["past_len", "batch", "free"]


def test_growing_axis_between_static_sizes():
    source = ("past", FLOAT, [1, 1, 48, 48])
    target = ("present", FLOAT, [1, 1, 49, 48])
    node = helper.make_node("Concat", ["past", "new"], ["present"], axis=2)
    (state,) = read([IDS, source], [LOGITS, target], [node]).states
    assert state.growth_axis == 2


def test_growing_axis_by_expression():
    source = ("p", FLOAT, ["s1", 1, "s15", 48])
    target = ("q", FLOAT, ["unk1", "unk2", "s15 + s70", "unk3"])
    node = helper.make_node("Concat", ["p", "new"], ["q"], axis=2)
    (state,) = read([("input_ids", INT, ["s1", "s70"]), source], [LOGITS, target], [node]).states
    assert state.growth_axis == 2


def test_state_reaches_its_output_through_layout():
    nodes = [
        helper.make_node("Transpose", ["p"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Concat", ["turned", "new"], ["joined"], axis=1),
        helper.make_node("Transpose", ["joined"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Identity", ["back"], ["q"]),
    ]
    ends = ("p", FLOAT, ["B", 1, "P", 8]), ("q", FLOAT, ["B", 1, "T", 8])
    (state,) = read([IDS, ends[0]], [LOGITS, ends[1]], nodes).states
    assert (state.output.name, state.growth_axis) == ("q", 2)


def test_state_reaches_its_output_through_a_branch():
    def branch(name):
        node = helper.make_node("Concat", ["p", "new"], [name], axis=2)
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )

    node = helper.make_node("If", ["long"], ["q"], then_branch=branch("a"), else_branch=branch("b"))
    ends = ("p", FLOAT, ["B", 1, "P", 8]), ("q", FLOAT, ["B", 1, "T", 8])
    (state,) = read([IDS, ("long", BOOL, []), ends[0]], [LOGITS, ends[1]], [node]).states
    assert state.output.name == "q"


@pytest.mark.parametrize(("past_len", "kind"), [("", "growing"), ("past_len", "buffer")])
def test_state_of_the_fused_operator(past_len, kind):
    node = helper.make_node(
        "LatentAttention", ["query", "new", "c", past_len], ["o", "d"], domain="mla_opt"
    )
    rows = ("P", "T") if kind == "growing" else (64, 64)
    ends = [(name, FLOAT, ["B", 1, n, 56]) for name, n in zip("cd", rows)]
    (state,) = read([IDS, ends[0]], [LOGITS, ends[1]], [node]).states
    assert (state.output.name, state.kind, state.growth_axis) == ("d", kind, 2)
    assert state.input.axes[2].role == ("past_len" if kind == "growing" else "capacity")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("input.past_key_values.layers.0.keys", "output.past_key_values.layers.0.keys"),
        ("past_key_0", "present_key_0"),
        ("cache.3.k_in", "cache.3.k_out"),
    ],
)
def test_state_is_paired_by_name_where_structure_is_silent(source, target):
    inputs = [IDS, (source, FLOAT, ["B", 1, "P", 8])]
    outputs = [
        LOGITS,
        ("present.7.other", FLOAT, ["B", 1, "T", 8]),
        (target, FLOAT, ["B", 1, "T", 8]),
    ]
    (state,) = read(inputs, outputs).states
    assert (state.output.name, state.growth_axis) == (target, 2)


def open_width(*intermediate, state="w"):
    """The size found for the last axis of a state, with values of these last sizes on the way."""
    values = [(f"v{i}", FLOAT, ["B", 12, size]) for i, size in enumerate(intermediate)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["conv_state", "kernel"], [name]) for name, *_ in values],
        "graph",
        [helper.make_tensor_value_info(*i) for i in (IDS, ("conv_state", FLOAT, ["B", 12, state]))],
        [helper.make_tensor_value_info("new_conv_state", FLOAT, ["B", 12, state])],
        value_info=[helper.make_tensor_value_info(*each) for each in values],
    )
    interface = ModelInterface.of(ir.from_proto(helper.make_model(graph)))
    (found,) = interface.states
    assert interface.bind(5, 1, 7)["conv_state"][:2] == (5, 12)
    return found.input.sizes[2]


@pytest.mark.parametrize(
    ("intermediate", "expected"),
    [
        (["w + 1", "w - 2"], 3),  # joined to one row, under a kernel of 4
        (["w + S", "w + S - 6"], 6),
        (["w - 1", "w + S - 1", "w + S - 4"], 4),  # its oldest row is dropped first
        (["2*w - 9"], 5),
        (["w + 1"], UNKNOWN_SIZE),
        (["w"], "w"),
        (["odd(w) - 7"], "w"),
        (["w - 100000"], "w"),
    ],
)
def test_an_open_width_of_a_state_is_found_out(intermediate, expected):
    assert open_width(*intermediate) == expected


def test_what_counts_sequences_or_tokens_is_no_width():
    assert open_width("B - 8", state="B") == "B"
    keys, keys_out, node = past(["B", 1, "P", 8])
    (state,) = read([IDS, keys], [LOGITS, keys_out], [node]).states
    assert state.input.sizes == ("B", 1, "P", 8)


def test_recurrent_states_are_paired_by_order_and_shape():
    inputs = [IDS, *((f"conv_state_{i}", FLOAT, ["B", 12, 4]) for i in "ab")]
    outputs = [LOGITS, *((f"conv_result_{i}", FLOAT, ["B", 12, 4]) for i in "xy")]
    states = read(inputs, outputs).states
    assert [(s.output.name, s.kind) for s in states] == [
        ("conv_result_x", "recurrent"),
        ("conv_result_y", "recurrent"),
    ]
    assert roles(states[0].input) == ["batch", "free", "free"]


def test_hidden_states_in_and_out_are_no_state():
    found = read(
        [("input_hidden_states", FLOAT, ["B", "S", 12])],
        [("output_hidden_states", FLOAT, ["B", "S", 12])],
    )
    assert found.states == ()
    assert found.embeddings.name == "input_hidden_states"


def test_joining_features_is_no_growth():
    node = helper.make_node("Concat", ["p", "q"], ["r"], axis=3)
    inputs = [IDS, ("p", FLOAT, ["B", 1, 7, 8]), ("q", FLOAT, ["B", 1, 7, 8])]
    assert read(inputs, [LOGITS, ("r", INT, ["B", 1, 7, 16])], [node]).states == ()


def test_an_output_continues_one_input_only():
    node = helper.make_node("Concat", ["p", "q"], ["r"], axis=2)
    inputs = [IDS, ("p", FLOAT, ["B", 1, "P", 8]), ("q", FLOAT, ["B", 1, "P", 8])]
    found = read(inputs, [LOGITS, ("r", FLOAT, ["B", 1, "T", 8])], [node]).states
    assert [s.input.name for s in found] == ["p"]


def test_known_pairs_outrank_the_graph():
    source, target, node = past(["B", 1, "P", 8])
    other = ("elsewhere", FLOAT, ["B", 1, "P", 8])
    known = KnownStates({"past.0.keys": "elsewhere"}, frozenset(["past.0.keys"]))
    (state,) = read([IDS, source], [LOGITS, target, other], [node], known=known).states
    assert (state.output.name, state.kind) == ("elsewhere", "buffer")


# -- stateless inputs --------------------------------------------------------------------------


def table(rows):
    return helper.make_tensor("table", FLOAT, [rows, 2], [0.0] * rows * 2)


def test_token_ids_and_vocabulary_by_structure():
    nodes = [
        helper.make_node("Cast", ["beta"], ["wide"], to=INT),
        helper.make_node("Gather", ["table", "wide"], ["x"]),
    ]
    inputs = [("alpha", INT, ["B", "S"]), ("beta", TensorProto.INT32, ["B", "S"])]
    found = read(inputs, [LOGITS], nodes, [table(31)])
    assert (found.token_ids.name, found.vocabulary) == ("beta", 31)
    assert roles(found.token_ids) == ["batch", "query_len"]


def test_vocabulary_of_a_transposed_table():
    nodes = [
        helper.make_node("Transpose", ["table"], ["turned"]),
        helper.make_node("Gather", ["turned", "input_ids"], ["x"]),
    ]
    assert read([IDS], [LOGITS], nodes, [table(31)]).vocabulary == 2


def test_positions_that_index_a_table_are_not_taken_for_tokens():
    nodes = [
        helper.make_node("Gather", ["table", "position_ids"], ["p"]),
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
    ]
    inputs = [("position_ids", INT, ["B", "S"]), IDS]
    found = read(inputs, [LOGITS], nodes, [table(9)])
    assert found.token_ids.name == "input_ids"
    assert [port.name for port in found.positions] == ["position_ids"]


def test_positions_by_structure():
    nodes = [
        helper.make_node("Cast", ["where"], ["real"], to=FLOAT),
        helper.make_node("Mul", ["real", "frequencies"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cosine"]),
    ]
    found = read([IDS, ("where", INT, ["B", "S"])], [LOGITS], nodes)
    assert [port.name for port in found.positions] == ["where"]


def test_one_line_of_positions_serves_all_rows():
    found = read([IDS, ("position_ids", INT, [1, "S"]), ("cache_position", INT, ["S"])], [LOGITS])
    assert [roles(port) for port in found.positions] == [["broadcast", "query_len"], ["query_len"]]
    shapes = found.bind(3, 5, 0)
    assert (shapes["position_ids"], shapes["cache_position"]) == ((1, 5), (5,))


@pytest.mark.parametrize("dtype", [INT, FLOAT, BOOL])
def test_mask_of_two_dimensions(dtype):
    found = read([IDS, ("attention_mask", dtype, ["m", "n"])], [LOGITS])
    assert roles(found.attention_mask) == ["batch", "total_len"]


def test_mask_of_four_dimensions():
    found = read([IDS, ("bias", FLOAT, ["B", 1, "S", "T"])], [LOGITS])
    assert roles(found.attention_mask) == ["batch", "free", "query_len", "total_len"]


def test_mask_with_one_query_row_serves_all_queries():
    found = read([IDS, ("attention_mask", FLOAT, ["B", 1, 1, "T"])], [LOGITS])
    assert found.bind(2, 5, 0)["attention_mask"] == (2, 1, 1, 5)


def test_embeddings_in_place_of_ids():
    found = read([("inputs_embeds", FLOAT, ["B", "S", 18])], [LOGITS])
    assert found.token_ids is None
    assert roles(found.tokens) == ["batch", "query_len", "free"]


def test_initializers_listed_as_inputs_are_none():
    inputs = [IDS, ("table", FLOAT, [9, 2])]
    assert [p.name for p in read(inputs, [LOGITS], [], [table(9)]).inputs] == ["input_ids"]


# -- sizes -------------------------------------------------------------------------------------


def cached(ids, mask, sizes):
    source, target, node = past(sizes)
    inputs = [("input_ids", INT, ids), ("attention_mask", INT, mask), source]
    return read(inputs, [LOGITS, target], [node])


@pytest.mark.parametrize(
    "total", ["T", "P + S", "past_sequence_length + sequence_length", "S", "s53", None]
)
def test_total_length_however_it_is_written(total):
    found = cached(["B", "S"], ["m", total], ["B", 1, "P", 48])
    shapes = found.bind(batch=3, query_len=2, past_len=5)
    assert shapes == {
        "input_ids": (3, 2),
        "attention_mask": (3, 7),
        "past.0.keys": (3, 1, 5, 48),
    }


def test_symbols_of_digits_are_static():
    found = cached(["B", "1"], ["B", "T"], ["B", "1", "P", "48"])
    assert found.limits() == Limits(query_len=1)
    assert found.bind(2, 1, 4)["past.0.keys"] == (2, 1, 4, 48)


def test_limits_of_static_sizes():
    source = ("past", FLOAT, [1, 1, 48, 8])
    target = ("present", FLOAT, [1, 1, 49, 8])
    node = helper.make_node("Concat", ["past", "new"], ["present"], axis=2)
    inputs = [("input_ids", INT, [1, 1]), ("attention_mask", INT, [1, 49]), source]
    found = read(inputs, [LOGITS, target], [node])
    assert found.limits() == Limits(1, 1, 48, 49)
    assert found.bind(1, 1, 48)["attention_mask"] == (1, 49)


def test_contradicting_a_static_size_names_input_and_dimension():
    found = cached([2, "S"], ["B", "T"], ["B", 1, "P", 48])
    with pytest.raises(InputError, match=r"dimension 0 of input 'input_ids' is 2 .* batch of 3"):
        found.bind(3, 1, 0)


def test_contradicting_an_expression_names_input_and_dimension():
    found = cached(["B", "S"], ["B", "P + 1"], ["B", 1, "P", 48])
    assert found.bind(1, 1, 6)["attention_mask"] == (1, 7)
    with pytest.raises(InputError, match="dimension 1 of input 'attention_mask'"):
        found.bind(1, 2, 6)


@pytest.mark.parametrize(
    "size", ["images", "2 ** 99999999999", "-" * 150 + "x", "(" * 199, "a-b", "0 / 0"]
)
def test_a_size_that_follows_from_nothing_is_small(size):
    found = read([IDS, ("pixels", FLOAT, ["B", size])], [LOGITS])
    assert found.bind(3, 1, 0)["pixels"] == (3, UNKNOWN_SIZE)


def test_an_input_without_a_shape_is_named():
    with pytest.raises(InputError, match="'pixels' has no shape"):
        read([IDS, ("pixels", FLOAT, None)], [LOGITS]).bind(1, 1, 0)


def test_without_states_there_is_no_past():
    found = read([IDS, ("attention_mask", INT, ["B", "T"])], [LOGITS])
    assert found.limits() == Limits(past_len=0)
    with pytest.raises(InputError, match="past_len of 4"):
        found.bind(1, 1, 4)


def test_other_inputs_share_the_tokens_symbols():
    found = read([IDS, ("token_type", FLOAT, ["B", "S"]), ("twice", FLOAT, ["2*S"])], [LOGITS])
    shapes = found.bind(3, 5, 0)
    assert (shapes["token_type"], shapes["twice"]) == ((3, 5), (10,))


def test_capacity_of_a_fixed_buffer():
    node = helper.make_node("LatentAttention", ["q", "n", "c", "l"], ["o", "d"], domain="mla_opt")
    ends = [(name, FLOAT, ["B", 1, 64, 56]) for name in "cd"]
    found = read([IDS, ends[0]], [LOGITS, ends[1]], [node])
    assert found.bind(1, 2, 3, capacity=16)["c"] == (1, 1, 64, 56)
    assert found.limits() == Limits()


def test_capacity_of_an_open_buffer():
    node = helper.make_node("LatentAttention", ["q", "n", "c", "l"], ["o", "d"], domain="mla_opt")
    ends = [(name, FLOAT, ["B", 1, "M", 56]) for name in "cd"]
    found = read([IDS, ends[0]], [LOGITS, ends[1]], [node])
    assert found.bind(1, 2, 3)["c"] == (1, 1, 5, 56)
    assert found.bind(1, 2, 3, capacity=16)["c"] == (1, 1, 16, 56)


# -- real exports ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported_model():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.exports.cache import exported
    from tests.exports.spec import ExportSpec

    return lambda **options: ir.load(exported(ExportSpec("deepseek_v3", **options)))


def test_interface_of_an_export_with_a_cache(exported_model):
    found = ModelInterface.of(exported_model())
    assert (found.token_ids.name, found.vocabulary) == ("input_ids", 97)
    assert found.attention_mask.name == "attention_mask"
    assert [port.name for port in found.positions] == ["position_ids"]
    assert {s.input.name: s.output.name for s in found.states} == {
        f"past.{i}.{part}": f"present.{i}.{part}" for i in (0, 1) for part in ("keys", "values")
    }
    assert {(s.kind, s.growth_axis) for s in found.states} == {("growing", 2)}
    assert found.others == ()
    assert found.limits() == Limits()
    assert found.bind(3, 2, 5) == {
        "input_ids": (3, 2),
        "attention_mask": (3, 7),
        "position_ids": (3, 2),
        **{f"past.{i}.keys": (3, 1, 5, 48) for i in (0, 1)},
        **{f"past.{i}.values": (3, 1, 5, 8) for i in (0, 1)},
    }


def test_interface_of_an_export_without_a_cache(exported_model):
    found = ModelInterface.of(exported_model(opset=23, attention="eager", cache=False))
    assert found.states == ()
    assert found.bind(3, 2, 0)["attention_mask"] == (3, 2)


def test_many_layers_are_read_quickly():
    layers = range(60)
    parts = [past(["B", 1, "P", 8], f"past.{i}.k", f"present.{i}.k") for i in layers]
    started = time.perf_counter()
    found = read(
        [IDS, *(p[0] for p in parts)], [LOGITS, *(p[1] for p in parts)], [p[2] for p in parts]
    )
    assert len(found.states) == len(layers)
    assert time.perf_counter() - started < 2


# -- places of rows in buffers -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ScatterND", "ScatterElements"])
def test_places_that_rows_are_written_to_are_positions_by_any_name(kind):
    moved = helper.make_node("Unsqueeze", ["where", "axes"], ["column"])
    written = helper.make_node(kind, ["buffer", "column", "rows"], ["logits"])
    inputs = [IDS, ("where", INT, ["S"]), ("buffer", FLOAT, [9, 4])]
    found = read(inputs, [LOGITS], [moved, written])
    assert [port.name for port in found.positions] == ["where"]
    assert found.token_ids.name == IDS[0]


@pytest.mark.parametrize(
    ("sizes", "nodes"),
    [
        ([], [helper.make_node("Range", ["begin", "end", "one"], ["logits"])]),
        (["B"], [helper.make_node("TensorScatter", ["buffer", "new", "begin"], ["logits"])]),
    ],
    ids=["range", "rows"],
)
def test_places_that_rows_are_written_from_are_starts(sizes, nodes):
    inputs = [IDS, ("begin", INT, sizes), ("buffer", FLOAT, ["B", 9, 4])]
    found = read(inputs, [LOGITS], nodes)
    assert [(port.name, roles(port)) for port in found.starts] == [
        ("begin", ["batch"] * len(sizes))
    ]
    assert not found.positions
