"""Caches of every layout: kept, packed and made buffers, by what their axes are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import pytest
from onnx import helper

import mla_opt
from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, Outcome, equal_or_refused
from tests.axes.model import CACHED
from tests.axes.plan import Plan, settled
from tests.axes.styles import PUBLISHED
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])
LAYOUTS = tuple(CACHED["latent"])


def made(word: str, **changes: str) -> Outcome:
    return equal_or_refused(build(settled(Plan(**changes))), sizes=SMALL, **ASKED[word])


@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("cache", ["latent", "joint"])
@pytest.mark.parametrize("word", ["packed", "static"])
def test_latent_rows_of_any_axes(word: str, cache: str, axes: str) -> None:
    rank = ("b1sr", "bsr", "bs1r")[LAYOUTS.index(axes) % 3]
    layers = "shared" if word == "packed" else "one"
    found = made(word, cache=cache, cache_axes=axes, row_rank=rank, layers=layers)
    assert (found.status, found.codes, found.matched) == ("equal", (), 1 + (layers == "shared"))


@pytest.mark.parametrize("cache", ["latent", "joint", "expanded"])
@pytest.mark.parametrize("word", ["nothing", "packed", "static"])
def test_the_output_may_be_the_rows_under_another_name(word: str, cache: str) -> None:
    found = made(word, cache=cache, cache_axes="tokens", row_rank="bsr", present="copy")
    assert (found.status, found.codes) == ("equal", ())


@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("cache", ["static", "static_joint", "static_expanded"])
def test_buffers_are_packed_in_the_places_that_the_model_tells(cache: str, axes: str) -> None:
    put = ("list", "each")[LAYOUTS.index(axes) % 2]
    found = made("packed", cache=cache, cache_axes=axes, put=put)
    assert (found.status, found.codes, found.matched) == ("equal", (), 1)


@pytest.mark.parametrize("put", ["list", "each"])
def test_buffers_of_keys_and_values_become_latent_ones(put: str) -> None:
    found = made("nothing", cache="static_expanded", layers="shared", put=put)
    assert (found.status, found.codes, found.matched) == ("equal", (), 2)


@pytest.mark.parametrize(
    ("word", "changes", "code"),
    [
        ("static", {"cache": "static"}, "cache_not_recognized"),
        ("static", {"cache": "static_expanded"}, "cache_not_recognized"),
        ("packed", {"cache": "latent", "norm_at": "read"}, "cache_not_recognized"),
        ("static", {"cache": "joint", "norm_at": "read"}, "cache_not_recognized"),
        ("packed", {"cache": "latent", "rotary_at": "read"}, "cache_not_recognized"),
        ("nothing", {"cache": "static_expanded", "bias": "key"}, "buffer_bias"),
        ("nothing", {"cache": "static_expanded", "bias": "value"}, "buffer_bias"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(word: str, changes: dict[str, str], code: str) -> None:
    found = made(word, **changes)
    assert (found.status, set(found.codes)) == ("refused", {code})


def elsewhere(model: onnx.ModelProto) -> onnx.ModelProto:
    """Values written one place further than keys."""
    _, last = (node for node in model.graph.node if node.op_type == "ScatterND")
    place = list(model.graph.node).index(last)
    one = helper.make_tensor("one_place", onnx.TensorProto.INT64, [1], [1])
    model.graph.initializer.append(one)
    model.graph.node.insert(
        place, helper.make_node("Add", [last.input[1], "one_place"], ["places_of_values"])
    )
    last.input[1] = "places_of_values"
    return model


def test_keys_and_values_in_different_places_are_no_rows() -> None:
    model = elsewhere(build(settled(Plan(cache="static_expanded", put="list"))))
    found = equal_or_refused(model, sizes=SMALL)
    assert (found.status, found.codes) == ("refused", ("cache_positions",))


def test_halves_in_different_places_are_not_packed() -> None:
    model = elsewhere(build(settled(Plan(cache="static", put="list"))))
    found = equal_or_refused(model, sizes=SMALL, **ASKED["packed"])
    assert (found.status, found.codes) == ("refused", ("cache_not_recognized",))


def turned_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """A joint cache that has ``k_pe`` in front of ``c_kv``."""
    join = next(
        node
        for node in model.graph.node
        if node.op_type == "Concat" and len({*node.input} & {"past.0.latent"}) == 1
    )
    rows = next(node for node in model.graph.node if join.input[1] in node.output)
    while rows.op_type != "Concat":
        rows = next(node for node in model.graph.node if rows.input[0] in node.output)
    rows.input[:] = list(reversed(rows.input))
    split = next(
        node for node in model.graph.node if node.op_type == "Split" and _reads(model, node, join)
    )
    sizes = next(each for each in model.graph.initializer if each.name == split.input[1])
    c, r = onnx.numpy_helper.to_array(sizes)
    model.graph.initializer.append(
        helper.make_tensor("turned_sizes", onnx.TensorProto.INT64, [2], [r, c])
    )
    split.input[1] = "turned_sizes"
    split.output[:] = list(reversed(split.output))
    return model


def _reads(model: onnx.ModelProto, node: onnx.NodeProto, join: onnx.NodeProto) -> bool:
    """Whether a node reads what another makes, through whatever has one operand."""
    made = {name: each for each in model.graph.node for name in each.output}
    while node.input and node.input[0] in made:
        node = made[node.input[0]]
        if node is join:
            return True
    return False


@pytest.mark.parametrize("word", ["packed", "static"])
@pytest.mark.parametrize("axes", ["heads", "turned"])
def test_halves_in_another_order_are_put_in_order(word: str, axes: str) -> None:
    model = turned_halves(build(settled(Plan(cache="joint", cache_axes=axes))))
    found = equal_or_refused(model, sizes=SMALL, **ASKED[word])
    assert (found.status, found.codes, found.matched) == ("equal", (), 1)


@pytest.mark.parametrize("word", ["nothing", "packed"])
def test_verification_holds_rows_of_another_order(word: str) -> None:
    model = turned_halves(build(settled(Plan(cache="joint", cache_axes="tokens", source="ids"))))
    result = mla_opt.optimize(model, **ASKED[word])
    assert result.report.verification["passed"]


WITH_CACHE = {name: plan for name, plan in PUBLISHED.items() if plan.cache != "none"}


@pytest.mark.parametrize("word", ["packed", "static"])
@pytest.mark.parametrize("name", WITH_CACHE)
def test_a_layout_asked_for_is_for_all_or_refused(name: str, word: str) -> None:
    model = build(settled(replace(WITH_CACHE[name], layers="two", fill="lowest")))
    try:
        sites = mla_opt.optimize(model, verify=False, **ASKED[word]).report.sites
    except mla_opt.RefusedError as refused:
        report: Any = refused.report
        assert {each.code for each in report.refusals} == {"cache_not_recognized"}
        assert all(each.remedy for each in report.refusals)
        return
    assert [site.cache_layout_after for site in sites] == [word] * 2
    assert all(site.cache_bytes_per_token_after for site in sites)


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("packed", {"cache": "latent", "cache_axes": "first"}),
        ("packed", {"cache": "static_joint"}),
        ("nothing", {"cache": "static_expanded"}),
    ],
    ids=str,
)
def test_verification_runs_caches_of_all_kinds(word: str, changes: dict[str, str]) -> None:
    model = build(settled(Plan(source="ids", **changes)))
    result = mla_opt.optimize(model, **ASKED[word])
    assert result.report.verification["passed"]


def with_pasts_apart(**changes: str) -> onnx.ModelProto:
    """Two layers whose caches declare sizes of their own for the past."""
    model = build(settled(Plan(layers="two", **changes)))
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past.1", "present.1")):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in ("P", "T"):
                    dim.dim_param = f"{dim.dim_param}1"
    return model


@pytest.mark.parametrize("mask", ["additive", "causal"])
@pytest.mark.parametrize("cache", ["latent", "joint", "expanded"])
def test_one_mask_of_all_layers_says_that_their_past_is_one(cache: str, mask: str) -> None:
    model = with_pasts_apart(cache=cache, mask=mask)
    found = equal_or_refused(model, sizes=SMALL, **ASKED["static"])
    assert (found.status, found.codes, found.matched) == ("equal", (), 2)


@pytest.mark.parametrize("cache", ["latent", "joint", "expanded"])
def test_one_length_for_two_pasts_is_told(cache: str) -> None:
    model = with_pasts_apart(cache=cache, mask="none", positions="input")
    notes = mla_opt.optimize(model, verify=False, **ASKED["static"]).report.notes
    assert any("different sizes for the past" in note for note in notes)
    for word in ("static", "packed"):
        found = equal_or_refused(model, sizes=SMALL, **ASKED[word])
        assert (found.status, found.codes, found.matched) == ("equal", (), 2)
    notes = mla_opt.optimize(model, verify=False, **ASKED["packed"]).report.notes
    assert not any("different sizes for the past" in note for note in notes)
