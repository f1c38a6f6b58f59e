"""The CUDA kernels on a GPU, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu import cases, checks
from tests.kernels.cuda.problems import check


@pytest.mark.parametrize("case", cases.ALL.values(), ids=cases.ALL.keys())
def test_case(runner, case):
    check(case, *runner.run(case))


@pytest.mark.parametrize("seed", range(60))
def test_random(runner, seed):
    check(cases.random_case(seed), *runner.run(cases.random_case(seed)))


@pytest.mark.parametrize("multiprocessors", [1, 8, 40, 500])
def test_any_number_of_splits(runner, multiprocessors):
    case = cases.QUICK["splits"]
    check(case, *runner.run(case, multiprocessors=multiprocessors))


def test_again_and_again_the_same_bits(runner):
    for case in cases.QUICK.values():
        first, *others = (runner.run(case)[1]["output"] for _ in range(5))
        for other in others:
            np.testing.assert_array_equal(other.view(np.uint16), first.view(np.uint16))


@pytest.mark.parametrize("heads", [16, 128])
def test_a_captured_graph_follows_the_lengths(runner, heads):
    checks.check_graph(runner, heads)


def test_the_tensor_memory_accelerator_is_used(runner):
    checks.check_bulk_loads(runner)


def test_two_streams_do_not_disturb_each_other(runner):
    checks.check_streams(runner)
