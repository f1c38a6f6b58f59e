from __future__ import annotations

import numpy as np
import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature, latent_attention
from tests.operator.cases import (
    ALL_SIGNATURES,
    BATCH,
    EVEN_SIGNATURES,
    HEADS,
    RANK,
    ROPE,
    SCALE,
    name,
    operands,
)
from tests.operator.naive import naive_attention


def reference(signature, feeds, rank=RANK):
    return latent_attention(**feeds, scale=SCALE, kv_lora_rank=rank, causal=signature.causal)


@pytest.mark.parametrize("query_len", [1, 5])
@pytest.mark.parametrize("signature", ALL_SIGNATURES, ids=name)
def test_matches_one_row_and_one_key_at_a_time(signature, query_len):
    feeds = operands(signature, query_len=query_len)
    expected, stored = naive_attention(
        feeds, scale=SCALE, kv_lora_rank=RANK, causal=signature.causal
    )
    result = reference(signature, feeds)
    assert result.output.dtype == np.float64
    np.testing.assert_allclose(result.output, expected, rtol=0, atol=1e-13)
    written = [cache is not None for cache in result]
    assert written == [i < len(signature.outputs) for i in range(3)]
    if signature.writes_cache:
        caches = [cache for cache in result[1:] if cache is not None]
        packed = np.concatenate(caches, axis=-1)
        for rows, expected_rows in zip(packed[:, 0], stored):
            np.testing.assert_array_equal(rows[: len(expected_rows)], expected_rows)


def test_a_buffer_keeps_the_rows_that_were_not_written():
    signature = Signature(has_cache=True, in_place=True)
    feeds = operands(signature, query_len=2)
    new_cache = reference(signature, feeds).new_cache
    changed = (new_cache != feeds["cache"]).any(axis=-1)[:, 0]
    for past, rows in zip(feeds["past_len"], changed):
        assert np.flatnonzero(rows).tolist() == [past, past + 1]


def test_unused_rows_take_no_part():
    signature = Signature(has_cache=True, in_place=True, causal=True)
    feeds = operands(signature, query_len=2)
    before = reference(signature, feeds).output
    for past, rows in zip(feeds["past_len"], feeds["cache"]):
        rows[0, past:] = np.nan
    np.testing.assert_array_equal(reference(signature, feeds).output, before)


def test_inputs_are_left_as_they_were():
    feeds = operands(Signature(has_cache=True, in_place=True))
    copies = {key: feed.copy() for key, feed in feeds.items()}
    reference(Signature(has_cache=True, in_place=True), feeds)
    for key, feed in feeds.items():
        np.testing.assert_array_equal(feed, copies[key])


def test_a_blind_row_gives_zeros_even_with_an_infinitely_negative_sink():
    signature = Signature(bias="boolean", sink=True)
    feeds = operands(signature)
    feeds["bias"][:] = False
    feeds["sink"][:] = -np.inf
    np.testing.assert_array_equal(reference(signature, feeds).output, 0.0)


def test_a_causal_row_before_the_first_key_gives_zeros():
    signature = Signature(has_latent=False, has_cache=True, causal=True)
    output = reference(signature, operands(signature, query_len=5, past=3)).output
    np.testing.assert_array_equal(output[:, :, :2], 0.0)
    assert (output[:, :, 2:] != 0.0).all()


def test_without_rotary_dims_the_latent_is_all():
    signature = Signature(has_cache=True, causal=True)
    feeds = operands(signature, rope=0)
    expected, _ = naive_attention(feeds, scale=SCALE, kv_lora_rank=RANK, causal=True)
    np.testing.assert_allclose(reference(signature, feeds).output, expected, rtol=0, atol=1e-13)


def test_a_sink_takes_its_share():
    feeds = operands(Signature(sink=True)) | {"sink": np.array([0.0, 1e4])}
    with_sink = reference(Signature(sink=True), feeds).output
    del feeds["sink"]
    plain = reference(Signature(), feeds).output
    assert (np.abs(with_sink[:, 0]) < np.abs(plain[:, 0])).all()
    np.testing.assert_array_equal(with_sink[:, 1], 0.0)


EVERYTHING = Signature(has_cache=True, in_place=True, split=True, bias="additive", sink=True)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("signature", EVEN_SIGNATURES, ids=name)
@pytest.mark.parametrize(("rank", "rope"), [(RANK, ROPE), (3, 5), (6, 0)])
def test_halves_of_rows_are_the_rows(signature, rank, rope):
    """The same as with both halves in one tensor, and no longer so once they change places."""
    feeds = operands(signature, rank=rank, rope=rope)
    given = {"scale": SCALE, "kv_lora_rank": rank, "causal": signature.causal}
    halves = [feeds.pop(key) for key in ("cache", "rope_cache")]
    whole = latent_attention(**feeds, cache=np.concatenate(halves, axis=3), **given)
    first, second = (dict(zip(("cache", "rope_cache"), order)) for order in (halves, halves[::-1]))
    output, *caches = latent_attention(**feeds, **first, **given)
    np.testing.assert_array_equal(output, whole.output)
    if whole.new_cache is not None:
        np.testing.assert_array_equal(np.concatenate(caches, axis=3), whole.new_cache)
    assert np.abs(latent_attention(**feeds, **second, **given).output - output).max() > 1e-3


def test_halves_of_an_odd_row_are_refused():
    signature = Signature(has_cache=True, split=True, even=True)
    with pytest.raises(InputError, match="cache has width 4, expected 6"):
        reference(signature, operands(signature, rope=3))


def test_the_second_half_is_as_wide_as_the_first():
    signature = Signature(has_cache=True, split=True, even=True)
    feeds = operands(signature) | {"rope_cache": zeros(BATCH, 1, 5, 4)}
    with pytest.raises(InputError, match="rope_cache has width 4, expected 5"):
        reference(signature, feeds)


@pytest.mark.parametrize(
    "options", [{"even": True}, {"even": True, "split": True, "codes": "int8"}], ids=str
)
def test_halves_need_two_tensors_of_numbers(options):
    with pytest.raises(InputError, match="halves"):
        Signature(has_cache=True, **options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("query", zeros(BATCH, HEADS, 5), "query has rank 3, expected 4"),
        ("latent", zeros(BATCH, 1, 5, 9), "latent has width 9, expected 10"),
        ("latent", zeros(BATCH, 2, 5, 10), "latent has axis 1 2, expected 1"),
        ("latent", zeros(BATCH, 5, 10), "latent has rank 3, expected 4"),
        ("cache", zeros(2, 1, 10, 6), "cache has batch 2, expected 3"),
        ("cache", zeros(BATCH, 1, 10, 10), "cache has width 10, expected 6"),
        ("rope_cache", zeros(BATCH, 1, 10, 3), "rope_cache has width 3, expected 4"),
        ("rope_cache", zeros(BATCH, 1, 9, 4), "rope_cache has 9 rows, cache has 10"),
        ("past_len", zeros(2, dtype=np.int32), "past_len has 2 elements, expected 3"),
        ("past_len", np.array([0, 6, 1], np.int32), r"past_len\[1\] is 6; cache has 10 rows"),
        ("past_len", np.array([0, 1, -1], np.int32), r"past_len\[2\] is -1; cache has 10"),
        ("bias", zeros(BATCH, 1, 5, 7), r"bias has shape \[3, 1, 5, 7\]"),
        ("bias", zeros(), r"bias has shape \[\]"),
        ("bias", zeros(1, BATCH, HEADS, 5, 10), r"bias has shape \[1, 3, 2, 5, 10\]"),
        ("sink", zeros(3), "sink has 3 elements, expected 2"),
    ],
)
def test_a_bad_shape_is_refused_by_name(key, value, message):
    with pytest.raises(InputError, match=message):
        reference(EVERYTHING, operands(EVERYTHING) | {key: value})


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (("latent", "cache", "rope_cache", "past_len"), "neither latent nor cache"),
        (("cache",), "rope_cache is given without cache"),
        (("cache", "rope_cache"), "past_len is given without the cache"),
    ],
)
def test_inputs_that_need_others_are_refused_without_them(absent, message):
    feeds = {key: v for key, v in operands(EVERYTHING).items() if key not in absent}
    with pytest.raises(InputError, match=message):
        reference(EVERYTHING, feeds)


def test_no_rows_at_all_are_refused():
    signature = Signature(has_latent=False, has_cache=True)
    with pytest.raises(InputError, match="0 rows"):
        reference(signature, operands(signature, past=0))


@pytest.mark.parametrize("rank", [0, RANK + ROPE + 1])
def test_a_rank_that_the_query_has_no_room_for_is_refused(rank):
    with pytest.raises(InputError, match=f"kv_lora_rank is {rank}, but query has width 10"):
        reference(Signature(), operands(Signature()), rank)


def test_a_split_cache_needs_rotary_dims():
    signature = Signature(has_cache=True, split=True)
    with pytest.raises(InputError, match="query has 0 dims beyond kv_lora_rank"):
        reference(signature, operands(signature, rope=0))
