"""How problems are cut into blocks: from shapes alone, within what every device has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mla_opt.kernels.cuda_library import WIDTHS, ElementType, cuda_problem

# Bytes of shared memory that a block may have.
SHARED = {
    "80": 166912,
    "86": 101376,
    "89": 101376,
    "90": 232448,
    "90a": 232448,
    "100": 232448,
    "120": 101376,
}
MULTIPROCESSORS = 132


def shapes(
    *, heads=16, query_len=1, batch=1, cache_len=4096, new_len=1, rank=512, rope=64, in_place=True
):
    return cuda_problem(
        element_type=ElementType.BFLOAT16,
        batch=batch,
        heads=heads,
        query_len=query_len,
        new_len=new_len,
        cache_len=cache_len,
        kv_lora_rank=rank,
        rope_dim=rope,
        scale=1.0,
        causal=True,
        query=16,
        output=16,
        past_len=16 if in_place else 0,
    )


GRID = list(itertools.product((1, 16, 20, 64, 128), (1, 4, 300), (1, 7, 128), (64, 5000, 70000)))


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("dims", WIDTHS)
def test_every_plan_fits(emulator, architecture, dims):
    for heads, query_len, batch, cache_len in GRID:
        problem = shapes(
            heads=heads,
            query_len=query_len,
            batch=batch,
            cache_len=cache_len,
            rank=dims[0],
            rope=dims[1],
        )
        plan = emulator.plan(problem, architecture, MULTIPROCESSORS)
        assert plan["shared"] <= SHARED[architecture]
        assert plan["row_tiles"] == -(-heads * query_len // plan["rows"])
        assert plan["blocks"] == plan["row_tiles"] * batch * plan["splits"] < 1 << 31
        assert 1 <= plan["splits"] <= max(1, -(-cache_len // plan["keys"]))
        bound = emulator.library.workspace_bytes(problem, MULTIPROCESSORS)
        assert plan["workspace"] <= bound
        assert (plan["workspace"] > 0) == (plan["splits"] > 1)


def test_workspace_of_a_larger_problem_does_for_a_smaller(emulator):
    """A host asks once, for the largest shapes that it will see."""
    random = np.random.default_rng(0)
    for _ in range(300):
        large = {
            "heads": int(random.integers(1, 129)),
            "query_len": int(random.integers(1, 40)),
            "batch": int(random.integers(1, 200)),
            "cache_len": int(random.integers(40, 100000)),
        }
        small = {name: int(random.integers(1, size + 1)) for name, size in large.items()}
        small["cache_len"] = max(small["cache_len"], 1)
        bound = emulator.library.workspace_bytes(shapes(**large), MULTIPROCESSORS)
        for architecture in SHARED:
            plan = emulator.plan(shapes(**small), architecture, MULTIPROCESSORS)
            assert plan["workspace"] <= bound


def test_workspace_for_a_device_that_is_not_known_yet(emulator):
    """A host may have to ask where there is no device, such as when an engine is built."""
    unknown = emulator.library.workspace_bytes(shapes(heads=128), 0)
    assert unknown == emulator.library.workspace_bytes(shapes(heads=128), 192)
    for fewer in (1, 36, 132):
        assert emulator.library.workspace_bytes(shapes(heads=128), fewer) <= unknown
        plan = emulator.plan(shapes(heads=128), "90a", fewer)
        assert plan["workspace"] <= unknown


def test_workspace_is_bounded(emulator):
    """Whatever the shapes: parts are made only where blocks are few."""
    largest = shapes(heads=128, query_len=8192, batch=1024, cache_len=1 << 20)
    assert emulator.library.workspace_bytes(largest, MULTIPROCESSORS) < 1 << 27


def test_workspace_where_there_is_a_kernel_and_nowhere_else(emulator):
    """What Python knows of the widths is what the library says."""
    dims = itertools.product((64, 128, 256, 320, 512, 576), (0, 16, 32, 64, 128))
    found = [
        (rank, rope)
        for rank, rope in dims
        if emulator.library.workspace_bytes(shapes(rank=rank, rope=rope), MULTIPROCESSORS)
    ]
    assert sorted(found) == sorted(WIDTHS)


@pytest.mark.parametrize("architecture", SHARED)
def test_one_sequence_fills_the_device(emulator, architecture):
    """Decoding: most multiprocessors get a share of a long cache."""
    for heads in (16, 128):
        plan = emulator.plan(shapes(heads=heads, cache_len=65536), architecture, MULTIPROCESSORS)
        assert plan["blocks"] >= 0.75 * MULTIPROCESSORS


def test_many_sequences_are_not_split(emulator):
    plan = emulator.plan(shapes(batch=1056, cache_len=4096), "90", MULTIPROCESSORS)
    assert plan["splits"] == 1


def test_many_heads_share_the_rows_they_read(emulator):
    """Wide where shared memory allows, narrow where it does not."""
    assert emulator.plan(shapes(heads=128), "90", MULTIPROCESSORS)["rows"] == 64
    assert emulator.plan(shapes(heads=128), "80", MULTIPROCESSORS)["rows"] == 64
    assert emulator.plan(shapes(heads=128), "89", MULTIPROCESSORS)["rows"] == 16
    assert emulator.plan(shapes(heads=64, rank=256, rope=32), "89", MULTIPROCESSORS)["rows"] == 64
    assert emulator.plan(shapes(heads=128), "90a", MULTIPROCESSORS)["keys"] == 64
    assert emulator.plan(shapes(heads=128, rank=256, rope=32), "90a", MULTIPROCESSORS)["keys"] == 32
    assert emulator.plan(shapes(heads=16), "90", MULTIPROCESSORS)["rows"] == 16
