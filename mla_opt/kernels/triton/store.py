"""The kernel that writes new latent rows into a buffer, each sequence's behind its past ones."""

# No `from __future__ import annotations`: Triton's interpreter looks at annotations as they are.
import triton
import triton.language as tl


@triton.jit
def store_rows(
    latent,  # [B, L, C+R]
    past_len,  # [B]
    cache,  # [B, M, C+R], or [B, M, C] when SPLIT_CACHE
    rope_cache,  # [B, M, R] when SPLIT_CACHE
    new_len,
    cache_len,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    SPLIT_CACHE: tl.constexpr,
):
    """Write one row, rounded to the cache's type; none that would lie outside the buffer."""
    batch = tl.program_id(1).to(tl.int64)
    new = tl.program_id(0)
    column = tl.arange(0, BLOCK_W)
    target = tl.load(past_len + batch) + new
    # A vector: Triton's interpreter takes no scalar into a mask.
    there = tl.full([BLOCK_W], 0, tl.int32) + target
    inside = (there >= 0) & (there < cache_len)
    width: tl.constexpr = C + R
    row = tl.load(latent + (batch * new_len + new) * width + column, mask=column < width, other=0.0)
    at = batch * cache_len + target
    if SPLIT_CACHE:
        c_kv = inside & (column < C)
        tl.store(cache + at * C + column, row.to(cache.dtype.element_ty), mask=c_kv)
        k_pe = inside & (column >= C) & (column < width)
        rounded = row.to(rope_cache.dtype.element_ty)
        tl.store(rope_cache + at * R + column - C, rounded, mask=k_pe)
    else:
        whole = inside & (column < width)
        tl.store(cache + at * width + column, row.to(cache.dtype.element_ty), mask=whole)
