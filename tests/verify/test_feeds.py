from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mla_opt.errors import InputError
from mla_opt.graphs.interface.dims import Axis, Port
from mla_opt.graphs.interface.feeds import mask_feed
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.verification.feeds import Timeline
from tests.verify import toys

INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def interface(*inputs):
    infos = [helper.make_tensor_value_info(*i) for i in inputs]
    output = helper.make_tensor_value_info("logits", FLOAT, ["B", "S", 5])
    return ModelInterface.of(
        ir.from_proto(helper.make_model(helper.make_graph([], "g", infos, [output])))
    )


IDS = ("input_ids", INT, ["B", "S"])
RAGGED = Timeline.of(3, 6, (3, 1, 0), seed=4)


def test_padding_is_on_the_left_and_the_last_row_has_none():
    found = interface(IDS, ("attention_mask", INT, ["B", "T"]), ("position_ids", INT, ["B", "S"]))
    feeds = RAGGED.call(found, 0, 6)
    assert feeds["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1] * 6]
    assert feeds["position_ids"].tolist() == [
        [0, 0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
    ]


def test_calls_are_cut_from_one_timeline():
    found = ModelInterface.of(ir.from_proto(toys.original()))
    whole, first, second = (RAGGED.call(found, *span) for span in ((0, 6), (0, 4), (4, 6)))
    joined = np.concatenate([first["input_ids"], second["input_ids"]], axis=1)
    assert np.array_equal(whole["input_ids"], joined)
    assert second["attention_mask"].shape == (3, 6)


def test_ids_stay_within_the_vocabulary_and_differ_by_seed():
    found = ModelInterface.of(ir.from_proto(toys.original()))
    ids = [Timeline.of(1, 400, (0,), seed).call(found, 0, 400)["input_ids"] for seed in (0, 0, 1)]
    assert ids[0].min() == 2
    assert ids[0].max() == toys.VOCABULARY - 1
    assert np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], ids[2])


def test_ids_of_an_unknown_vocabulary():
    ids = Timeline.of(1, 400, (0,), 0).call(interface(IDS), 0, 400)["input_ids"]
    assert (ids.min(), ids.max()) == (2, 15)


@pytest.mark.parametrize(
    ("dtype", "seen", "hidden"), [(FLOAT, 0.0, -3.4028235e38), (BOOL, True, False), (INT, 1, 0)]
)
def test_mask_of_four_dimensions_is_causal(dtype, seen, hidden):
    found = interface(IDS, ("mask", dtype, ["B", 1, "S", "T"]))
    mask = RAGGED.call(found, 0, 6)["mask"]
    assert mask.shape == (3, 1, 6, 6)
    assert mask[1, 0, 3].tolist() == pytest.approx([hidden, seen, seen, seen, hidden, hidden])
    assert mask[0, 0, 0].tolist() == pytest.approx([seen, *[hidden] * 5])  # sees itself: no NaN


def test_mask_with_one_query_row_is_that_of_the_last_query():
    found = interface(IDS, ("mask", BOOL, ["B", 1, 1, "T"]))
    assert RAGGED.call(found, 0, 6)["mask"][0].tolist() == [[[False] * 3 + [True] * 3]]


def test_embeddings():
    found = interface(("inputs_embeds", FLOAT, ["B", "S", 7]))
    whole, start = (RAGGED.call(found, 0, stop)["inputs_embeds"] for stop in (6, 4))
    assert whole.shape == (3, 6, 7)
    assert whole.std() > 0.5
    assert np.array_equal(whole[:, :4], start)


def test_embeddings_of_no_known_width_are_refused():
    with pytest.raises(InputError, match="inputs_embeds"):
        RAGGED.call(interface(("inputs_embeds", FLOAT, ["B", "S", "S"])), 0, 6)


def test_other_inputs():
    found = interface(
        IDS,
        ("use_cache_branch", BOOL, [1]),
        ("num_logits_to_keep", INT, []),
        ("temperature", FLOAT, ["B"]),
        ("cosine", FLOAT, ["S", 4]),
    )
    feeds = RAGGED.call(found, 0, 6)
    assert feeds["use_cache_branch"].tolist() == [True]
    assert feeds["num_logits_to_keep"].tolist() == 0
    assert feeds["temperature"].tolist() == [1, 1, 1]
    assert len(np.unique(feeds["cosine"])) == 24


def test_positions_that_serve_all_rows_count_slots():
    found = interface(IDS, ("cache_position", INT, ["S"]))
    assert RAGGED.call(found, 0, 6)["cache_position"].tolist() == [0, 1, 2, 3, 4, 5]


def test_paddings_must_match_the_rows():
    with pytest.raises(ValueError, match="3 rows but 2 paddings"):
        Timeline.of(3, 6, (1, 0), 0)


@pytest.mark.parametrize("sizes", [["B", "T"], ["S", "T"], ["B", "S", "T"], ["B", 1, "S", "T"]])
@pytest.mark.parametrize("kind", ["BOOL", "INT64"])
def test_a_mask_that_hides_is_the_other_way_round(sizes, kind):
    roles = {"B": "batch", "S": "query_len", "T": "total_len", 1: "broadcast"}
    axes = tuple(Axis(roles[size], size) for size in sizes)
    counts = {"B": 2, "S": 3, "T": 5, 1: 1}
    shape = tuple(counts[size] for size in sizes)
    valid = np.array([[False, True, True, True, True], [True] * 5])
    shows, hides = (
        mask_feed(Port("mask", ir.DataType[kind], axes, hides), shape, valid, 2)
        for hides in (False, True)
    )
    assert shows.dtype == hides.dtype
    assert shows.any()
    assert hides.any()
    assert np.array_equal(shows.astype(bool), ~hides.astype(bool))
