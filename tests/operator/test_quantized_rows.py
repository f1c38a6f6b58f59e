"""Rows of 8 bits by their definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature, latent_attention
from mla_opt.operator.quantized_rows import dequantize, quantize, row_bytes, width_beside

CODES = ("int8", "float8_e4m3fn")


def rows(rank: int, rope: int, count: int = 7, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-6, 6, (2, 1, count, 1))
    return (random.standard_normal((2, 1, count, rank + rope)) * scale).astype(np.float32)


@pytest.mark.parametrize(
    ("rank", "rope", "width", "size"),
    [(512, 64, 72, 656), (256, 32, 40, 336), (512, 0, 8, 528), (6, 4, 8, 22), (129, 6, 8, 145)],
)
def test_widths_and_bytes(rank, rope, width, size):
    assert (width_beside(rank, rope), row_bytes(rank, rope)) == (width, size)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(("rank", "rope"), [(512, 64), (160, 4), (6, 4), (256, 0)])
def test_every_number_is_within_half_a_step(codes, rank, rope):
    given = rows(rank, rope)
    kept, beside = quantize(given, rank, codes)
    assert kept.dtype == codes
    assert beside.dtype == ml_dtypes.bfloat16
    read = dequantize(kept, beside, rope)
    blocks = [slice(first, min(first + 128, rank)) for first in range(0, rank, 128)]
    for block in blocks:
        most = np.abs(given[..., block]).max(-1, keepdims=True)
        error = np.abs(read[..., block] - given[..., block])
        # 4 bits of significand: half a step is 1/16 of a number; below 2^-6 steps are even
        steps = (
            most / 254 if codes == "int8" else np.abs(given[..., block]) / 16 + most / 448 / 1024
        )
        assert (error <= steps * 1.01).all()
    np.testing.assert_array_equal(
        read[..., rank:], given[..., rank:].astype(ml_dtypes.bfloat16).astype(np.float64)
    )


@pytest.mark.parametrize("codes", CODES)
def test_what_is_read_is_exact_in_float32(codes):
    kept, beside = quantize(rows(512, 64), 512, codes)
    read = dequantize(kept, beside, 64)
    np.testing.assert_array_equal(read.astype(np.float32), read)


def test_codes_are_rounded_to_even_and_clipped():
    given = np.zeros((1, 1, 1, 128), np.float32)
    given[..., :6] = [127.0, 0.5, 1.5, -2.5, -126.6, 3.5]
    kept, beside = quantize(given, 128, "int8")
    assert beside[0, 0, 0, 0] == 1
    assert kept[0, 0, 0, :6].tolist() == [127, 0, 2, -2, -127, 4]
    # bfloat16 rounds the scale down: the largest number is beyond the largest code
    given[..., 0] = 127 * (1 + 2**-9) * 0.99999
    kept, beside = quantize(given, 128, "int8")
    assert (beside[0, 0, 0, 0], kept[0, 0, 0, 0]) == (1, 127)
    given[..., 0] = 448 * (1 + 2**-9) * 0.99999
    kept, beside = quantize(given, 128, "float8_e4m3fn")
    assert (beside[0, 0, 0, 0], kept[0, 0, 0, 0]) == (1, 448)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("tiny", [0.0, 1e-45])
def test_a_scale_of_zero_has_codes_of_zero(codes, tiny):
    given = np.full((1, 1, 1, 130), tiny, np.float32)
    given[..., 128:] = 5.0
    kept, beside = quantize(given, 130, codes)
    assert not kept[..., :128].astype(np.float32).any()
    assert not beside[..., 0]
    np.testing.assert_allclose(dequantize(kept, beside, 0)[..., 128:], 5.0, rtol=1e-2)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(codes, wrong):
    given = rows(6, 4)
    given[0, 0, 0, 3] = wrong
    with pytest.raises(InputError, match="not finite"):
        quantize(given, 6, codes)


@pytest.mark.parametrize("codes", CODES)
def test_a_decode_step_sees_what_the_prompt_saw(codes):
    """All tokens at once, or one after the other: the same rows, and the same outputs."""
    rank, rope, heads = 160, 4, 3
    random = np.random.default_rng(2)
    query = random.standard_normal((1, heads, 5, rank + rope)).astype(np.float32)
    latent = rows(rank, rope, 5)[:1]
    caches = quantize(latent[:, :, :0], rank, codes)
    given = {"scale": 0.1, "kv_lora_rank": rank, "causal": True}
    cache, beside = caches
    whole = latent_attention(query, latent, cache, rope_cache=beside, **given)
    for step in range(5):
        now = slice(step, step + 1)
        done = latent_attention(
            query[:, :, now], latent[:, :, now], cache, rope_cache=beside, **given
        )
        np.testing.assert_allclose(done.output[:, :, 0], whole.output[:, :, step], rtol=1e-12)
        cache, beside = done.new_cache.astype(codes), done.new_rope_cache.astype(beside.dtype)
    np.testing.assert_array_equal(cache.astype(np.float64), whole.new_cache)
    np.testing.assert_array_equal(beside.astype(np.float64), whole.new_rope_cache)


def test_codes_need_their_scales():
    given = rows(6, 4)
    cache, beside = quantize(given, 6, "int8")
    query = given[:, :, :2]
    with pytest.raises(InputError, match="rope_cache, which holds the scales"):
        latent_attention(query, cache=cache, scale=1.0, kv_lora_rank=6)
    with pytest.raises(InputError, match="rope_cache has width 4, expected 8"):
        latent_attention(query, cache=cache, rope_cache=beside[..., :4], scale=1.0, kv_lora_rank=6)
    with pytest.raises(InputError, match="rope_cache is float32, expected bfloat16"):
        latent_attention(
            query, cache=cache, rope_cache=beside.astype(np.float32), scale=1.0, kv_lora_rank=6
        )
    with pytest.raises(InputError, match="needs rope_cache"):
        Signature(has_cache=True, codes="int8")
    with pytest.raises(InputError, match="codes are"):
        Signature(has_cache=True, split=True, codes="int4")
