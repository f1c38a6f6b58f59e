"""The kernel that puts the parts of a query row together, the sink among them."""

# No `from __future__ import annotations`: Triton's interpreter looks at annotations as they are.
import triton
import triton.language as tl

from mla_opt.kernels.triton.attend import LOG2_E


@triton.jit
def combine_splits(
    partial,  # [B, H*S, splits, C] float32
    log_sum,  # [B, H*S, splits] float32, base 2
    sink,  # [H] when SINK
    output,  # [B, H, S, C]
    heads,
    query_len,
    splits,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    SINK: tl.constexpr,
):
    """Weigh and add the parts of one query row."""
    batch = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0)
    head = m % heads
    first = (batch * heads * query_len + m) * splits
    index = tl.arange(0, MOST_SPLITS)
    logs = tl.load(log_sum + first + index, mask=index < splits, other=float("-inf"))
    top = tl.max(logs, 0)
    if SINK:
        logit = tl.load(sink + head).to(tl.float32) * LOG2_E
        top = tl.maximum(top, logit)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(logs - top), 0)
    if SINK:
        total += tl.exp2(logit - top)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    sums = tl.zeros([BLOCK_C], tl.float32)
    for split in tl.range(0, splits):
        weight = tl.exp2(tl.load(log_sum + first + split) - top)
        sums += weight * tl.load(partial + (first + split) * C + columns, mask=inside, other=0.0)
    kept = sums / tl.where(total == 0.0, 1.0, total)
    row = (batch * heads + head) * query_len + m // heads
    tl.store(output + row * C + columns, kept.to(output.dtype.element_ty), mask=inside)
