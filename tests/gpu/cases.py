"""What the kernels are checked on: every kernel, every signature, and what is hard."""

from __future__ import annotations

import numpy as np

from tests.kernels.cuda.problems import BFLOAT16, Case

HALF = np.dtype(np.float16)
DIMS = ((512, 64), (256, 32), (512, 0))
RAGGED = (0, 1, 31, 32, 33, 500, 1023, 3000)


def _named(**fields: object) -> dict[str, Case]:
    case = Case(**fields)
    words = [f"H{case.heads} S{case.query_len}", f"{case.rank}+{case.rope}", str(case.dtype)]
    words += [f"past {case.lengths or case.past}", case.bias, "sink" * case.sink]
    words += ["causal" * case.causal, "split cache" * case.split_cache, f"seed {case.seed}"]
    return {", ".join(word for word in words if word): case}


EVERY_KERNEL = {
    name: case
    for rank, rope in DIMS
    for dtype in (HALF, BFLOAT16)
    for heads, query_len in ((5, 1), (16, 1), (20, 1), (128, 1), (16, 70))
    for name, case in _named(
        heads=heads,
        query_len=query_len,
        past=777,
        batch=2,
        rank=rank,
        rope=rope,
        dtype=dtype,
        causal=True,
    ).items()
}
DECODE = {
    name: case
    for heads in (16, 64, 128)
    for fields in (
        {"lengths": RAGGED, "sink": True},
        {"lengths": RAGGED, "split_cache": True, "query_len": 3},
        {"lengths": RAGGED, "aliased": False},
        {"past": 20000},
        {"past": 5000, "batch": 3, "split_cache": True, "bias": "boolean", "bias_shape": "bt"},
    )
    for name, case in _named(heads=heads, causal=True, **fields).items()
}
HARD = {
    "large scores": Case(heads=16, past=3000, scale=40.0, dtype=HALF),
    "large scores, wide": Case(heads=128, past=3000, scale=40.0),
    "blind rows": Case(heads=16, query_len=8, new_len=4, past=0, causal=True, sink=True),
    "mostly masked": Case(heads=40, query_len=5, past=900, bias="additive", bias_shape="bhst"),
    "prefill": Case(heads=16, query_len=300, has_cache=False, causal=True),
    # On Hopper whole tiles of 64 keys come another way than those with an end or a seam.
    "ends around tiles": Case(heads=128, lengths=(62, 63, 64, 127, 128, 191, 4095), causal=True),
    "new rows behind a seam": Case(heads=16, query_len=40, new_len=600, past=100),
    "new rows behind a split cache": Case(
        heads=64, query_len=3, new_len=400, past=1000, batch=3, split_cache=True, sink=True
    ),
    "split cache, long": Case(heads=128, lengths=(20000, 7), split_cache=True),
    "512 + 0, ragged": Case(heads=64, lengths=RAGGED, rope=0, causal=True),
    "one key": Case(heads=128, past=0, batch=5),
    "one row, one key": Case(heads=1, past=0),
}
# A few of all: under a sanitizer everything takes many times longer.
QUICK = {
    "narrow": Case(heads=16, lengths=(0, 33, 200), causal=True, sink=True),
    "wide": Case(heads=128, lengths=(0, 33, 200), causal=True, split_cache=True),
    "splits": Case(heads=16, past=3000, bias="boolean", bias_shape="t"),
    "prefill": Case(heads=16, query_len=20, past=30, causal=True, dtype=HALF),
    "new rows behind a seam": Case(heads=16, query_len=4, new_len=300, past=100),
    "256 + 32": Case(heads=40, past=300, rank=256, rope=32, dtype=HALF),
    "512 + 0": Case(heads=16, past=300, rank=512, rope=0),
}
ALL = {**EVERY_KERNEL, **DECODE, **HARD}


def random_case(seed: int) -> Case:
    """Any legal problem, of a size that float64 can follow."""
    random = np.random.default_rng(seed)

    def pick(*values: object) -> object:
        return values[int(random.integers(len(values)))]

    rank, rope = DIMS[int(random.integers(len(DIMS)))]
    query_len = int(random.integers(1, 12))
    in_place = bool(random.integers(2))
    lengths = tuple(int(n) for n in random.integers(0, 700, int(random.integers(1, 5))))
    has_cache = in_place or bool(random.integers(4))
    return Case(
        heads=int(pick(1, 3, 16, 17, 33, 64, 128)),
        query_len=query_len,
        past=int(random.integers(0, 1500)),
        lengths=lengths if in_place else None,
        batch=int(random.integers(1, 4)),
        capacity=(max(lengths) + query_len + int(random.integers(0, 40))) if in_place else 0,
        rank=rank,
        rope=rope,
        dtype=BFLOAT16 if random.integers(2) else HALF,
        split_cache=has_cache and rope > 0 and bool(random.integers(2)),
        has_cache=has_cache,
        aliased=bool(random.integers(2)),
        bias=str(pick("none", "none", "additive", "boolean")),
        bias_shape=str(pick("bhst", "t", "st", "bst", "ht", "bt")),
        sink=bool(random.integers(2)),
        causal=bool(random.integers(2)),
        scale=float(random.uniform(-0.2, 0.2)),
        seed=seed,
    )
