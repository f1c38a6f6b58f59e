"""Reading lists of sizes, and what a point asks for."""

from __future__ import annotations

import pytest

from mla_opt.benchmarking.points import Point, grid, parse_sizes
from mla_opt.errors import InputError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("1k,8k,32k", (1024, 8192, 32768)), ("512", (512,)), (" 0 , 1K ", (0, 1024))],
)
def test_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_sizes(text, 0) == sizes


@pytest.mark.parametrize("text", ["", "1,,2", "x", "-1", "1.5k", "1k,1024", "9999999999", "²"])
def test_what_is_no_list_of_sizes(text: str) -> None:
    with pytest.raises(InputError):
        parse_sizes(text, 0)


def test_too_small_a_size() -> None:
    with pytest.raises(InputError, match="at least 1"):
        parse_sizes("4,0", 1)


def test_the_grid_has_every_combination() -> None:
    points = grid((8, 4), (1, 2), (1,))
    assert points == (Point(4, 1, 1), Point(8, 1, 1), Point(4, 2, 1), Point(8, 2, 1))


def test_only_single_tokens_are_fed_back() -> None:
    assert Point(4096, 1, 1).growth == 256
    assert Point(4096, 1, 512).growth == 1
    assert Point(4096, 2, 512).workload.total_len == 4608
