"""The definition of ``MultiHeadLatentAttention`` against keys and values made as the model does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.kv_b import Storage, numbers
from mla_opt.operator.multi_head import MultiHeadSignature
from mla_opt.operator.multi_head_reference import multi_head_latent_attention
from tests.operator import cases
from tests.operator.multi_head_cases import (
    SCALE,
    SMALL,
    SMALL_STORAGES,
    expected,
    factors,
    operands,
    weights,
)

PLAIN_WEIGHTS = weights(*SMALL_STORAGES["float32"], SMALL)


def expanded(feeds, *, causal):
    """Softmax attention over the keys and values of each head, one query at a time."""
    query, latent = feeds["query"].astype(np.float64), feeds["latent"].astype(np.float64)
    batch, heads, length, _ = query.shape
    nope, rank = SMALL.qk_nope_head_dim, SMALL.kv_lora_rank
    output = np.zeros((batch, heads, length, SMALL.v_head_dim))
    for b, h, s in np.ndindex(batch, heads, length):
        kv_b = feeds["kv_b"].reshape(heads, -1, rank)[h].astype(np.float64)
        past = feeds["past_len"][b]
        cached = np.concatenate([feeds["cache"], feeds["rope_cache"]], axis=-1)[b, 0, :past]
        rows = np.concatenate([cached, latent[b, 0]])
        seen = past + s + 1 if causal else len(rows)
        keys = np.concatenate([rows[:, :rank] @ kv_b[:nope].T, rows[:, rank:]], axis=1)[:seen]
        logits = SCALE * keys @ query[b, h, s] + feeds["bias"][b, 0, s, :seen]
        probabilities = np.exp(np.append(logits, feeds["sink"][h]))
        if probabilities.any():
            values = rows[:seen, :rank] @ kv_b[nope:].T
            output[b, h, s] = probabilities[:-1] / probabilities.sum() @ values
    return output


@pytest.mark.parametrize("causal", [False, True])
def test_absorbed_is_what_the_model_computes_expanded(causal):
    attention = Signature(True, True, True, True, "additive", True, causal)
    signature = MultiHeadSignature(attention)
    feeds = operands(signature, PLAIN_WEIGHTS)
    assert (
        cases.difference(expanded(feeds, causal=causal), expected(signature, feeds).output) < 1e-13
    )


def test_packed_numbers_by_hand():
    kv_b = np.array([[[0x10, 0x32], [0x54, 0x76]], [[0xFF, 0x0F], [0xF0, 0x00]]], np.uint8)
    scales = np.array([[1.0, 2.0], [0.5, 4.0]], np.float32)
    plain = Storage(bits=4, block_size=4)
    np.testing.assert_array_equal(
        numbers(plain, kv_b, scales, None, 7),
        [[-8, -7, -6, -5, -8, -6, -4], [3.5, 3.5, 3.5, -4, -32, 28, -32]],
    )
    packed = Storage(bits=4, block_size=4, zero_points="packed")
    zeros = np.array([[0x31], [0xF0]], np.uint8)
    np.testing.assert_array_equal(
        numbers(packed, kv_b, scales, zeros, 7),
        [[-1, 0, 1, 2, 2, 4, 6], [7.5, 7.5, 7.5, 0, -60, 0, -60]],
    )
    two_bits = Storage(bits=2, block_size=4)
    np.testing.assert_array_equal(
        numbers(two_bits, np.array([[[0b11100100]]], np.uint8), scales[:1, :1], None, 4),
        [[-2, -1, 0, 1]],
    )


def test_blocks_of_rows_and_columns_by_hand():
    kv_b = np.arange(12).reshape(3, 4).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array([[1, 10], [100, 1000]], np.float32)
    np.testing.assert_array_equal(
        numbers(Storage(block_size=3, block_rows=2), kv_b, scales, None, 4),
        [[0, 1, 2, 30], [4, 5, 6, 70], [800, 900, 1000, 11000]],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3, "block_size": 8}, "3 bits"),
        ({"bits": 4, "block_size": 3}, "3 numbers of 4 bits fill no bytes"),
        ({"bits": 4}, "0 numbers of 4 bits fill no bytes"),
        ({"bits": 4, "block_size": 32, "block_rows": 2}, "scales of one row"),
        ({"zero_points": "plain"}, "zero points are given without scales"),
        ({"block_size": 8, "zero_points": "packed"}, "packed, but kv_b is not"),
        ({"block_size": -1}, "a block has 1 rows of -1"),
        ({"zero_points": "some"}, "zero points are 'some'"),
    ],
    ids=str,
)
def test_a_storage_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        Storage(**options)


@pytest.mark.parametrize(
    ("storage", "name", "shape", "message"),
    [
        ("packed4_zeros", "kv_b", (16, 1, 2), r"kv_b has rows of \[1, 2\], expected \[2, 2\]"),
        (
            "packed4_zeros",
            "kv_b",
            (15, 2, 2),
            r"kv_b_scales has shape \[16, 2\], expected \[15, 2\]",
        ),
        ("packed4_zeros", "kv_b_zero_points", (16, 2), r"has shape \[16, 2\], expected \[16, 1\]"),
        ("int8_by_row", "kv_b", (16, 5), r"rows of \[5\], expected \[6\]"),
        ("float32", "kv_b", (15, 6), "kv_b has 15 rows, expected 16"),
        ("packed4", "kv_b_scales", None, "kv_b_scales: missing"),
        ("float32", "kv_b_scales", (16, 1), "kv_b_scales: given, but the storage has none"),
        ("float32", "kv_b_factors", (1, 6), r"kv_b_factors has shape \[1, 6\], expected \[2, 6\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(storage, name, shape, message):
    how, *types = SMALL_STORAGES[storage]
    signature = MultiHeadSignature(Signature(), how)
    feeds = operands(signature, weights(how, *types, SMALL))
    feeds[name] = None if shape is None else np.zeros(shape, np.uint8)
    with pytest.raises(InputError, match=message):
        multi_head_latent_attention(
            **feeds,
            scale=SCALE,
            kv_lora_rank=6,
            qk_nope_head_dim=3,
            v_head_dim=5,
            storage=how,
        )


def test_factors_are_those_of_the_rows_in_front_of_keys_and_values():
    signature = MultiHeadSignature(Signature(), factors=True)
    feeds = operands(signature, PLAIN_WEIGHTS | factors(SMALL))
    of_keys, of_values = feeds["kv_b_factors"].astype(np.float64)
    by_head = feeds["kv_b"].astype(np.float64).reshape(cases.HEADS, -1, SMALL.kv_lora_rank)
    nope = SMALL.qk_nope_head_dim
    multiplied = np.concatenate([by_head[:, :nope] * of_keys, by_head[:, nope:] * of_values], 1)
    plain = MultiHeadSignature(Signature())
    wanted = {name: feeds[name] for name in plain.inputs}
    wanted["kv_b"] = multiplied.reshape(feeds["kv_b"].shape)
    np.testing.assert_allclose(
        expected(signature, feeds).output, expected(plain, wanted).output, rtol=1e-13
    )


def test_a_signature_lists_what_a_node_takes():
    storage = SMALL_STORAGES["packed4_zeros"][0]
    signature = MultiHeadSignature(Signature(has_cache=True, sink=True), storage, "absorbed")
    assert signature.inputs == (
        "query",
        "kv_b",
        "latent",
        "cache",
        "sink",
        "kv_b_scales",
        "kv_b_zero_points",
    )
    assert signature.overload == "latent_cache_sink_packed4_4_packed_zeros_absorbed"
    with pytest.raises(InputError, match="it was given query"):
        signature.arrange({"query": 1})
    with pytest.raises(InputError, match="form is 'fast'"):
        MultiHeadSignature(form="fast")
