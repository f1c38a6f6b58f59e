"""The CUDA kernels' own source on an emulated GPU, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

from mla_opt.errors import InputError
from tests.kernels.cuda.problems import (
    BFLOAT16,
    TYPES,
    Case,
    check,
    difference,
    expected,
    operands,
    problem_of,
    results,
)

# Three sizes of shared memory: stages, widths and blocks side by side differ; and warpgroups.
ARCHITECTURES = ("80", "86", "90", "90a")
DIMS = ((512, 64), (256, 32), (512, 0))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("rank", "rope"), DIMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel(emulator, architecture, rank, rope, dtype):
    """Narrow and wide, of each type, pair of dims and size of memory."""
    for heads in (5, 48):
        case = Case(heads=heads, past=75, rank=rank, rope=rope, dtype=dtype, causal=True)
        check(case, *emulator.run(case, architecture=architecture))


LONG = Case(heads=3, past=700, seed=1)
IN_PLACE = Case(heads=6, query_len=3, lengths=(0, 33, 61), capacity=96, causal=True)
CASES = {
    "growing": Case(heads=16, past=64),
    "first chunk, no cache": Case(has_cache=False, heads=2, query_len=40, causal=True),
    "all in the cache": Case(new_len=0, past=50),
    "empty cache": Case(past=0, query_len=2, heads=9),
    "not causal": Case(heads=2, query_len=30, past=20),
    "rows of two tiles": Case(heads=20, query_len=1, past=33),
    "rows of many tiles": Case(heads=7, query_len=20, past=10, causal=True),
    "fewer keys than queries": Case(heads=2, query_len=6, new_len=3, past=0, causal=True),
    "split cache": Case(split_cache=True, past=40, query_len=2),
    "in place": IN_PLACE,
    "in place, split": IN_PLACE.but(split_cache=True),
    "in place, copied": IN_PLACE.but(aliased=False),
    "in place, split, copied": IN_PLACE.but(aliased=False, split_cache=True),
    "in place, nothing new": IN_PLACE.but(new_len=0, lengths=(3, 96, 50)),
    "in place, full": Case(lengths=(63,), capacity=64, heads=16),
    "additive bias": Case(heads=4, query_len=4, past=37, bias="additive", bias_shape="bst"),
    "boolean bias": Case(heads=4, query_len=4, past=37, bias="boolean", bias_shape="st"),
    "bias of heads": Case(heads=18, past=37, bias="additive", bias_shape="ht", batch=2),
    "bias of all": Case(heads=4, query_len=4, past=37, bias="boolean", batch=2, causal=True),
    "bias of rows": Case(heads=4, query_len=4, past=37, bias="additive", bias_shape="s"),
    "sink": Case(heads=17, query_len=2, past=37, sink=True),
    "sink, bias, causal": IN_PLACE.but(sink=True, bias="additive", bias_shape="bst"),
    "negative scale": Case(scale=-0.3),
    "splits": LONG,
    "splits, sink": LONG.but(sink=True, heads=33),
    "splits, in place": LONG.but(lengths=(0, 5, 690), query_len=2, causal=True, sink=True),
    "splits, mostly without keys": LONG.but(lengths=(30, 0), capacity=900, sink=True),
    "splits, bias": LONG.but(bias="boolean", query_len=2),
    "splits, 256 + 32": LONG.but(rank=256, rope=32),
}


def larger(case):
    """Enough rows for warpgroups, and keys for whole tiles where there was a cache with any."""
    longer = None if case.lengths is None else tuple(n + 100 for n in case.lengths)
    return case.but(
        heads=case.heads + 32,
        past=case.past and case.past + 100,
        lengths=longer,
        capacity=case.capacity and case.capacity + 100,
    )


@pytest.mark.parametrize("architecture", ["90", "90a"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_signature(emulator, case, architecture):
    # Few multiprocessors leave no room for splits.
    multiprocessors = 8 if case.past == LONG.past else 1
    case = larger(case) if architecture == "90a" else case
    options = {"architecture": architecture, "multiprocessors": multiprocessors, "seed": 3}
    check(case, *emulator.run(case, **options))


def test_order_does_not_matter(emulator):
    """Other orders of blocks and warps and of when copies land, to the last bit."""
    case = IN_PLACE.but(heads=16, seed=9)
    runs = [emulator.run(case, architecture="80", seed=seed)[1]["output"] for seed in range(4)]
    for other in runs[1:]:
        np.testing.assert_array_equal(other.view(np.uint16), runs[0].view(np.uint16))


MANY = {
    "ragged": Case(heads=64, lengths=(0, 70, 199), causal=True, sink=True),
    "rows": Case(heads=12, query_len=9, past=100, causal=True, bias="additive", bias_shape="st"),
    "split cache": Case(heads=40, lengths=(63, 64), split_cache=True, aliased=False),
    "splits": Case(heads=128, past=900, seed=4),
    "splits, boolean": Case(heads=128, lengths=(700, 1), bias="boolean", bias_shape="bt"),
    "half": Case(heads=33, past=130, dtype=np.dtype(np.float16), scale=30.0),
    "without rope": Case(heads=70, past=130, rope=0),
    "first chunk": Case(heads=8, query_len=20, has_cache=False, causal=True),
}


@pytest.mark.parametrize("case", MANY.values(), ids=MANY.keys())
def test_warpgroups(emulator, case):
    """What many heads or rows meet on Hopper."""
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    assert emulator.plan(problem, "90a", 8)["keys"] == 64
    for seed in range(2):
        check(case, *emulator.run(case, architecture="90a", multiprocessors=8, seed=seed))


@pytest.mark.parametrize(
    ("what", "architecture", "heads"),
    [
        ("block barrier", "80", 48),
        ("group barrier", "80", 48),
        # Three stages, of which one could be waited for too late.
        ("wait", "80", 16),
        ("block barrier", "90a", 64),
        ("group barrier", "90a", 64),
        ("show", "90a", 64),
        ("phase", "90a", 64),
    ],
)
def test_what_would_be_a_race_is_noticed(emulator, what, architecture, heads):
    """The emulation is worth something: without a barrier or a wait, some order gives nonsense."""
    case = Case(heads=heads, past=200)
    errors = []
    with emulator.broken(what):
        for seed in range(3):
            wanted, made = emulator.run(case, architecture=architecture, seed=seed)
            errors.append(difference(made["output"], wanted["output"]))
    assert max(errors) > 0.1


def test_rows_that_see_nothing(emulator):
    """Zeros, with a sink too; and a finite bias, however negative, is an ordinary number."""
    for number, nothing in ((-np.inf, True), (float(np.finfo(np.float16).min), False)):
        for sink in (True, False):
            case = Case(heads=2, query_len=2, past=40, bias="additive", bias_shape="st", sink=sink)
            arrays = operands(case)
            arrays["bias"][...] = 0
            arrays["bias"][..., 1, :] = number
            wanted = expected(case, arrays)
            made = results(case, arrays, wanted)
            emulator.become("86", 0)
            emulator.launch(problem_of(case, arrays, made, lambda array: array.ctypes.data), 1)
            check(case, wanted, made)
            assert nothing == (not made["output"][:, :, 1].astype(np.float32).any()) or sink


def test_least_finite_bias(emulator):
    """All of a row at the least number of bfloat16: the mean of what it attends to."""
    case = Case(heads=1, query_len=1, past=40, bias="additive")
    arrays = operands(case)
    arrays["bias"][...] = np.array(-3.3895314e38, BFLOAT16)
    wanted = expected(case, arrays)
    made = results(case, arrays, wanted)
    emulator.launch(problem_of(case, arrays, made, lambda array: array.ctypes.data), 1)
    check(case, wanted, made)


@pytest.mark.parametrize("size", [30.0, 1e4])
def test_large_scores(emulator, size):
    """Scores in the thousands, of either sign: no overflow, and the greatest key wins."""
    case = Case(heads=4, past=130, dtype=np.dtype(np.float16), scale=size)
    check(case, *emulator.run(case, architecture="80"))


def test_past_len_out_of_range_is_clamped(emulator):
    """The host cannot see it: what it says must not lead out of the buffer."""
    case = Case(lengths=(0, 30), heads=4, capacity=31)
    arrays = operands(case)
    wanted = expected(case, arrays)
    made = results(case, arrays, wanted)
    arrays["past_len"][...] = (-7, 1 << 30)
    emulator.launch(problem_of(case, arrays, made, lambda array: array.ctypes.data), 1)
    check(case, wanted, made)


def test_no_queries_but_new_rows(emulator):
    """The caches are written all the same."""
    for case in (
        Case(query_len=0, new_len=3, lengths=(0, 20)),
        Case(query_len=0, new_len=3, past=5),
    ):
        wanted, made = emulator.run(case)
        np.testing.assert_array_equal(made["new_cache"].astype(np.float64), wanted["new_cache"])


REFUSED = {
    "type": ({"element_type": 1}, "query is float32: on CUDA there are kernels for float16"),
    "dims": ({"rope_dim": 32}, "kv_lora_rank is 512 and the rotary width 32"),
    "batch": ({"batch": -1}, "batch is -1, expected 0 to"),
    "size": ({"heads": 1 << 20, "query_len": 1 << 12}, "more than the 1073741824"),
    "query": ({"query": 0}, "query is missing"),
    "output": ({"output": 0}, "output is missing"),
    "latent": ({"latent": 0}, "latent is missing, but 1 new rows are claimed"),
    "cache": ({"cache": 0}, "cache is missing, but 41 rows of it are claimed"),
    "new cache": ({"new_cache": 0}, "new_cache is missing, but 1 rows are to be added"),
    "room": ({"new_len": 50}, "cache has 41 rows, and 50 are to be added"),
    "scale": ({"scale": float("inf")}, "scale is inf, which is not a finite"),
    "double scale": ({"scale": 1e300}, "which is not a finite float32"),
    "alignment": ({"query": 8}, "which is no multiple of 16 bytes"),
    "bias": ({"bias": 16, "bias_type": 1}, "bias is float32, expected bool or bfloat16"),
    "rope": ({"rope_dim": 0, "rope_cache": 16}, "query has 0 dims beyond kv_lora_rank"),
    "new rope": ({"rope_cache": 16}, "new_rope_cache is missing"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(emulator, change, message):
    case = Case(lengths=(40,), change=change)
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    with pytest.raises(InputError, match="LatentAttention: ") as caught:
        emulator.library.launch(problem, 1, 0, 0, 0)
    assert message in str(caught.value)


def test_halves_of_rows_are_refused(emulator):
    case = Case(lengths=(40,))
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    problem.even_cache = 1
    with pytest.raises(InputError, match="no kernel for rows whose halves lie in two tensors"):
        emulator.library.launch(problem, 1, 0, 0, 0)


def test_workspace_too_small(emulator):
    case = LONG
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    with pytest.raises(InputError, match=r"the workspace has 16 bytes, .* are needed"):
        emulator.library.launch(problem, 8, 16, 16, 0)
    with pytest.raises(InputError, match=r"the workspace has 0 bytes, .* are needed"):
        emulator.library.launch(problem, 8, 0, 1 << 40, 0)


def test_another_version(emulator):
    case = Case()
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    problem = problem_of(case, arrays, made, lambda array: array.ctypes.data)
    problem.struct_size += 8
    assert emulator.library.workspace_bytes(problem, 8) == 0
    with pytest.raises(InputError, match="the host was built for another version"):
        emulator.library.launch(problem, 1, 0, 0, 0)
