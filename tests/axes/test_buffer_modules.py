"""PyTorch modules whose caches are changed in place: buffers of keys and values become latent."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import mla_opt
from tests.axes.buffer_modules import REAL, Way, call, empty, exported, replace

TOLERANCE = 1e-5
CALLS = ((4, 0), (1, 4), (30, 5), (1, 35), (3, 36))
STEPS = ((1, 1), (1, 2), (1, 3))
"""Not from 0 on: the export says that it does not hold there."""

NAIVE = (
    Way(),
    Way(read="all"),
    Way(order="heads"),
    Way(write="put", read="all"),
    Way(write="put", read="all", order="heads", some=False),
    Way(write="copy", read="all", order="heads"),
    Way(write="scatter", read="all"),
    Way(write="scatter", read="all", order="heads"),
    Way(write="each", read="all"),
    Way(write="each", read="all", order="heads"),
    Way(write="select"),
    Way(write="select", read="all", order="heads"),
    Way(kept="arguments"),
    Way(kept="arguments", write="copy", read="all", some=False),
    Way(kept="arguments", write="each", read="all", some=False),
)

ABSORBED = (
    Way("absorbed"),
    Way("absorbed", write="put", read="all"),
    Way("absorbed", write="scatter", read="all", kept="arguments"),
)


def worst(before: Any, after: Any, way: Way, batch: int) -> float:
    """The largest deviation over some calls, each on what the one before has left."""
    modules = [copy.deepcopy(each.module()) for each in (before, after)]
    caches = [_caches(each, way, batch) for each in (before, after)]
    errors = []
    for tokens, past in STEPS if way.write == "select" else CALLS:
        given = call(way, batch, tokens, past)
        with torch.no_grad():
            wanted, found = (m(*given, *own) for m, own in zip(modules, caches))
        errors.append(float((wanted - found).abs().max() / wanted.abs().max()))
    return max(errors)


def _caches(program: Any, way: Way, batch: int) -> list[torch.Tensor]:
    """Zeros for the caches that a program takes, as it takes them."""
    if way.kept != "arguments":
        return []
    count = len(empty(way, 1)[0]) and (way.widths.sequences if way.some else batch)
    places = program.graph.find_nodes(op="placeholder")
    shapes = [node.meta["val"].shape for node in places if "cache" in node.name]
    return [torch.zeros(count, *map(int, shape[1:])) for shape in shapes]


def kept_width(program: Any) -> int:
    """Numbers that the program keeps of a token."""
    places = program.graph.find_nodes(op="placeholder")
    caches = [n.meta["val"] for n in places if "cache" in n.name]
    rows = {53, 40}
    return sum(
        int(torch.tensor([s for s in cache.shape[1:] if s not in rows]).prod()) for cache in caches
    )


def held(way: Way) -> Any:
    batch = 3 if way.some or way.kept == "arguments" else way.widths.sequences
    program = exported(way)
    result = mla_opt.optimize(program, verify=False)
    assert len(result.report.sites) == 1
    assert kept_width(result.model) == way.widths.latent + way.widths.rope
    assert worst(program, result.model, way, batch) < TOLERANCE
    return result


@pytest.mark.parametrize("way", [*NAIVE, *ABSORBED], ids=str)
def test_a_cache_that_is_changed_becomes_latent(way: Way) -> None:
    held(way)


@pytest.mark.parametrize("form", ["naive", "absorbed"])
@pytest.mark.parametrize("decomposed", [False, True])
def test_the_widths_of_released_models(form: str, decomposed: bool) -> None:
    held(replace(Way(form), widths=REAL))
