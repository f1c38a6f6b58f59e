"""The kernel that attends: one program for a tile of query rows and one part of the keys.

    query rows m = position * H + head, so that neighbours share their mask   [BLOCK_M, C+R]
    latent rows, loaded once: keys as [c | r], values as c                    [BLOCK_N, C+R]

    scores = scale * (q_c @ c^T + q_r @ r^T) + bias, -inf where a row may not look
    online softmax in base 2; output += weights @ c

With one part the program writes the output; with more, its normalised part in float32 and the
logarithm of its sum, for :mod:`mla_opt.kernels.triton.combine`. Lengths are read on the device, and
clamped to the buffer: no value of theirs leads outside it. Offsets within a sequence's rows have 32
bits: 64 would spill registers.
"""

# No `from __future__ import annotations`: Triton's interpreter looks at annotations as they are.
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_split(
    query,  # [B, H, S, C+R]
    rows,  # [B, T, C+R], or [B, T, C] when SPLIT_CACHE
    rope,  # [B, T, R] when SPLIT_CACHE
    past_len,  # [B] when IN_PLACE
    bias,  # to [B, H, S, T] by its strides, when BIAS
    sink,  # [H] when SINK
    output,  # [B, H, S, C], written when ONE_SPLIT
    partial,  # [B, H*S, splits, C] float32, written otherwise
    log_sum,  # [B, H*S, splits] float32, likewise
    scale,
    heads,
    query_len,
    total_len,
    new_len,
    splits,
    bias_b,
    bias_h,
    bias_s,
    bias_t,
    C: tl.constexpr,
    R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_CACHE: tl.constexpr,
    IN_PLACE: tl.constexpr,
    CAUSAL: tl.constexpr,
    SINK: tl.constexpr,
    BIAS: tl.constexpr,  # 0: none, 1: additive, 2: boolean as bytes
    ONE_SPLIT: tl.constexpr,
):
    """Attend from one tile of query rows to one part of the keys."""
    batch = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_count = heads * query_len
    real = m < row_count
    head = m % heads
    position = m // heads
    # Within a sequence; 64 bits only where it becomes an address, so that none are kept meanwhile.
    row = head * query_len + position

    # Masks of columns only where a width is no power of 2: they cost registers.
    columns_c = tl.arange(0, BLOCK_C)
    in_c = columns_c[None, :] < C
    q_rows = query + batch * row_count * (C + R) + row.to(tl.int64)[:, None] * (C + R)
    q_mask = real[:, None] if C == BLOCK_C else real[:, None] & in_c
    q_c = tl.load(q_rows + columns_c[None, :], mask=q_mask, other=0.0)
    columns_r = tl.arange(0, BLOCK_R)
    in_r = columns_r[None, :] < R
    if R > 0:
        r_mask = real[:, None] if R == BLOCK_R else real[:, None] & in_r
        q_r = tl.load(q_rows + C + columns_r[None, :], mask=r_mask, other=0.0)

    valid = total_len
    if IN_PLACE:
        valid = tl.minimum(tl.maximum(tl.load(past_len + batch) + new_len, 0), total_len)
    seen = valid
    last = tl.zeros([BLOCK_M], tl.int32) + valid - 1
    if CAUSAL:
        last = valid - query_len + position
        deepest = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M, row_count) - 1
        seen = tl.maximum(valid - query_len + deepest // heads + 1, 0)
    share = tl.cdiv(tl.cdiv(seen, splits), BLOCK_N) * BLOCK_N
    first = split * share
    end = tl.minimum(first + share, seen)

    if SPLIT_CACHE:
        c_stride = C
        r_stride = R
        c_rows = rows + batch * total_len * C
        r_rows = rope + batch * total_len * R
    else:
        c_stride = C + R
        r_stride = C + R
        c_rows = rows + batch * total_len * (C + R)
        r_rows = c_rows + C

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    n = tl.arange(0, BLOCK_N)
    for start in tl.range(first, end, BLOCK_N):
        key = start + n
        there = key < end
        c = tl.load(
            c_rows + key[:, None] * c_stride + columns_c[None, :],
            mask=there[:, None] if C == BLOCK_C else there[:, None] & in_c,
            other=0.0,
        ).to(q_c.dtype)
        scores = tl.dot(q_c, tl.trans(c), input_precision="ieee")
        if R > 0:
            r = tl.load(
                r_rows + key[:, None] * r_stride + columns_r[None, :],
                mask=there[:, None] if R == BLOCK_R else there[:, None] & in_r,
                other=0.0,
            ).to(q_c.dtype)
            scores = tl.dot(q_r, tl.trans(r), scores, input_precision="ieee")
        scores = scores * (scale * LOG2_E)
        allowed = real[:, None] & there[None, :]
        if CAUSAL:
            allowed = allowed & (key[None, :] <= last[:, None])
        if BIAS > 0:
            at = bias + batch * bias_b + tl.cast(start, tl.int64) * bias_t
            at_row = head.to(tl.int64) * bias_h + position.to(tl.int64) * bias_s
            value = tl.load(at + at_row[:, None] + n[None, :] * bias_t, mask=allowed, other=0)
            if BIAS == 1:
                scores = scores + value.to(tl.float32) * LOG2_E
            else:
                allowed = allowed & (value != 0)
        scores = tl.where(allowed, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - safe)
        weights = tl.exp2(scores - safe[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(c.dtype), c, sums * shrink[:, None], input_precision="ieee")
        top = higher

    if ONE_SPLIT:
        if SINK:
            logit = tl.load(sink + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
            higher = tl.maximum(top, logit)
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            shrink = tl.exp2(top - safe)
            total = total * shrink + tl.exp2(logit - safe)
            sums = sums * shrink[:, None]
        kept = sums / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            output + (batch * row_count + row)[:, None] * C + columns_c[None, :],
            kept.to(output.dtype.element_ty),
            mask=q_mask,
        )
    else:
        # A split without a key that the row may see: zeros, with a weight of 0.
        nothing = total == 0.0
        kept = sums / tl.where(nothing, 1.0, total)[:, None]
        slot = (batch * row_count + m) * splits + split
        tl.store(
            partial + slot[:, None] * C + columns_c[None, :],
            kept,
            mask=q_mask,
        )
        weight = tl.where(nothing, float("-inf"), top + tl.log2(tl.where(nothing, 1.0, total)))
        tl.store(log_sum + slot, weight, mask=real)
