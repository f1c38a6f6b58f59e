"""PyTorch modules whose caches are changed in place: buffers of keys and values become latent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mla_opt
from tests.axes.buffer_modules import REAL, Module, Way, call, empty, exported, made, replace

TOLERANCE = 1e-5
CALLS = ((4, 0), (1, 4), (30, 5), (1, 35), (3, 36))
STEPS = ((1, 1), (1, 2), (1, 3))
"""Not from 0 on: the export says that it does not hold there."""

QUICK = (
    Way(write="put", read="all", order="heads", some=False),
    Way(kept="arguments", write="copy", read="all", some=False),
    Way("absorbed"),
)

OTHERS = (
    Way(),
    Way(write="each", read="all"),
    Way(read="all"),
    Way(order="heads"),
    Way(write="put", read="all"),
    Way(write="copy", read="all", order="heads"),
    Way(write="scatter", read="all"),
    Way(write="scatter", read="all", order="heads"),
    Way(write="each", read="all", order="heads"),
    Way(write="select"),
    Way(write="select", read="all", order="heads"),
    Way(kept="arguments"),
    Way(kept="arguments", write="each", read="all", some=False),
    Way("absorbed", write="put", read="all"),
    Way("absorbed", write="scatter", read="all", kept="arguments"),
)


def worst(
    before: Any, after: Any, way: Way, batch: int, sizes: tuple[tuple[int, int], ...] = CALLS
) -> float:
    """The largest deviation over some calls, each on what the one before has left."""
    modules = [copy.deepcopy(each.module()) for each in (before, after)]
    caches = [_caches(each, way, batch) for each in (before, after)]
    errors = []
    for tokens, past in STEPS if way.write == "select" else sizes:
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


def held(program: Any, way: Way) -> None:
    batch = 3 if way.some or way.kept == "arguments" else way.widths.sequences
    result = mla_opt.optimize(program, verify=False)
    assert len(result.report.sites) == 1
    assert kept_width(result.model) == way.widths.latent + way.widths.rope
    assert worst(program, result.model, way, batch) < TOLERANCE


class Elsewhere(Module):
    """A look-alike: values are one place further than keys."""

    def put(self, part, rows, place, places, axis) -> None:
        further = int(rows.shape[-1] == self.way.widths.value)
        super().put(part, rows, place, places + further, axis)


class Rolled(Module):
    """A look-alike: the rows are read in another order."""

    def cached(self, new, where, store) -> Tensor:
        return super().cached(new, where, store).roll(1, 1)


class Turned(Module):
    """A look-alike: new values are written in reverse."""

    def cached(self, new, where, store) -> Tensor:
        turned = new.flip(1) if new.shape[-1] == self.way.widths.value else new
        return super().cached(turned, where, store)


class Early(Module):
    """Only the rows of the past are read."""

    def cached(self, new, where, store) -> Tensor:
        return super().cached(new, where, store)[:, : where[0]]


class ReadTwice(Module):
    """A look-alike: the keys of the cache are returned, too."""

    def forward(self, hidden: Tensor, place: Any, *caches: Tensor) -> Tensor:
        made = super().forward(hidden, place, *caches)
        return made + self.k_cache[: hidden.shape[0]].mean()


class Added(Module):
    """A look-alike: rows are added to what is there."""

    def put(self, part, rows, place, places, axis) -> None:
        torch.ops.aten.index_put_(part, [None, places], rows, True)


WAYS = (*QUICK, *(pytest.param(way, marks=pytest.mark.sweep) for way in OTHERS))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_cache_that_is_changed_becomes_latent(way: Way) -> None:
    held(exported(way), way)


@pytest.mark.sweep
@pytest.mark.parametrize("way", [*QUICK, *OTHERS], ids=str)
def test_a_decomposed_program(way: Way) -> None:
    held(exported(way).run_decompositions(), way)


@pytest.mark.parametrize("form", ["naive", pytest.param("absorbed", marks=pytest.mark.sweep)])
def test_the_widths_of_released_models(form: str) -> None:
    way = replace(Way(form), widths=REAL)
    held(exported(way), way)


def test_it_is_verified_from_an_empty_cache_on_and_saved(tmp_path: Path) -> None:
    way = Way(write="copy", read="all", order="heads")
    program = exported(way)
    result = mla_opt.optimize(program)
    changes = result.report.interface_changes
    assert result.report.verification["passed"]
    assert [change.kind for change in changes] == ["input"] * 2 + ["output"] * 2
    torch.export.save(result.model, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert worst(program, loaded, way, 3) < TOLERANCE


@pytest.mark.parametrize("form", ["naive", "absorbed"])
def test_what_is_changed_in_place_is_not_packed(form: str) -> None:
    with pytest.raises(mla_opt.RefusedError, match="in place"):
        mla_opt.optimize(exported(Way(form)), cache="packed", verify=False)


def codes(program: Any) -> list[str]:
    with pytest.raises(mla_opt.NothingMatchedError) as refused:
        mla_opt.optimize(program, verify=False)
    return [refusal.code for refusal in refused.value.report.refusals]


def test_a_cache_with_rows_in_it_stays() -> None:
    way = Way()
    module = made(way)
    module.k_cache[:, 3] = 1.0
    assert codes(exported(way, module=module)) == ["cache_in_place"]


def test_a_graph_module_keeps_what_it_changes() -> None:
    assert codes(exported(Way(kept="arguments")).module()) == ["cache_in_place"]


def test_rows_of_keys_and_values_in_different_places_are_no_rows() -> None:
    assert codes(exported(Way(write="put", read="all"), kind=Elsewhere)) == ["cache_positions"]


def test_a_cache_that_is_read_twice_stays() -> None:
    assert codes(exported(Way(), kind=ReadTwice)) == ["cache_read_twice"]


def test_rows_that_are_added_to_others_are_none() -> None:
    assert codes(exported(Way(write="put", read="all"), kind=Added)) == ["tokens_apart"]


@pytest.mark.parametrize(
    "kind", [Rolled, *(pytest.param(each, marks=pytest.mark.sweep) for each in (Turned, Early))]
)
@pytest.mark.parametrize("read", ["end", pytest.param("all", marks=pytest.mark.sweep)])
def test_what_only_looks_like_it_is_equal_or_refused(kind: type[Module], read: str) -> None:
    way = Way(read=read)
    program = exported(way, kind=kind)
    try:
        result = mla_opt.optimize(program, verify=False)
    except mla_opt.NothingMatchedError:
        return
    calls = tuple(size for size in CALLS if size[1])
    assert worst(program, result.model, way, 3, calls) < TOLERANCE
