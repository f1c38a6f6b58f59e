"""Folding into projections that are written, or work, otherwise than one plain matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.matching.fold_certificate import output_holds, query_holds
from mla_opt.matching.folding import output_projection, query_projection
from tests.axes.edits import branched, node, reader, replaced, reprojected, stored, weight
from tests.axes.feeding import Feeds, understand
from tests.axes.harness import FEW, Runner, Size, deviation, equal_or_refused
from tests.axes.plan import Plan
from tests.axes.writer import build
from tests.graphs.latent_block import Block
from tests.passes.harness import EXTRACT, graph_of, run

H, N, R, V, E = 3, 5, 4, 7, 13
SIZES = (*FEW, Size(3, 1, 4), Size(2, 2, 1))


def by_einsum(name: str, equation: str, *turned: int) -> onnx.ModelProto:
    """A projection by einsum; what it makes is turned back."""
    model = build(Plan())
    back = [node("Transpose", ["made"], ["back"], perm=turned)] if turned else []
    last = "back" if turned else "made"
    return reprojected(
        model,
        name,
        lambda source, stored, result: [
            node("Einsum", [source, stored], ["made"], equation=equation),
            *back,
            node("Identity", [last], [result]),
        ],
    )


def queries_of_heads(equation: str, *turned: int) -> onnx.ModelProto:
    """A matrix for each head, as JAX has them: what is made has an axis of heads by itself."""
    model = build(Plan())
    full, content = weight(model, "q_b")
    stored(model, "by_head", content.reshape(E, H, N + R))
    product = reader(model, full)
    parted = reader(model, product.output[0])
    turn = reader(model, parted.output[0])
    made = node("Einsum", [product.input[0], "by_head"], ["made"], equation=equation)
    end = [node("Transpose", ["made"], [turn.output[0]], perm=turned)] if turned else []
    if not turned:
        made.output[0] = turn.output[0]
    replaced(model, product, [made, *end])
    replaced(model, parted, [])
    replaced(model, turn, [])
    return model


def queries_of_sums() -> onnx.ModelProto:
    """The sum of two halves of what is projected."""
    model = build(Plan())
    _, content = weight(model, "q_b")
    stored(model, "twice", np.concatenate([content, content[:, ::-1]], axis=1))
    stored(model, "halves", np.array([H * (N + R)] * 2))
    return reprojected(
        model,
        "q_b",
        lambda source, _, result: [
            node("MatMul", [source, "twice"], ["both"]),
            node("Split", ["both", "halves"], ["half", "other_half"], axis=-1),
            node("Add", ["half", "other_half"], [result]),
        ],
    )


def by_convolution(name: str) -> onnx.ModelProto:
    """A convolution with a kernel of one place, over tokens."""
    model = build(Plan())
    _, content = weight(model, name)
    stored(model, "kernel", np.ascontiguousarray(content.T[:, :, None]))
    return reprojected(
        model,
        name,
        lambda source, _, result: [
            node("Transpose", [source], ["channels"], perm=[0, 2, 1]),
            node("Conv", ["channels", "kernel"], ["made"]),
            node("Transpose", ["made"], [result], perm=[0, 2, 1]),
        ],
    )


def tokens_first(name: str) -> onnx.ModelProto:
    """Rows `[S, B, X]`, as the older models of PyTorch have them."""
    return reprojected(
        build(Plan()),
        name,
        lambda source, stored, result: [
            node("Transpose", [source], ["tokens_first"], perm=[1, 0, 2]),
            node("MatMul", ["tokens_first", stored], ["made"]),
            node("Transpose", ["made"], [result], perm=[1, 0, 2]),
        ],
    )


def flat(name: str) -> onnx.ModelProto:
    """Rows `[B S, X]`; what is projected is read as such before it has three axes again."""
    model = build(Plan())
    _, content = weight(model, name)
    stored(model, "rows", np.array([-1, content.shape[0]]))
    stored(model, "width", np.array([content.shape[1]]))
    return reprojected(
        model,
        name,
        lambda source, stored, result: [
            node("Reshape", [source, "rows"], ["flat"]),
            node("MatMul", ["flat", stored], ["made"]),
            node("Neg", ["made"], ["negative"]),
            node("Neg", ["negative"], ["positive"]),
            node("Shape", ["x"], ["batch_and_tokens"], start=0, end=2),
            node("Concat", ["batch_and_tokens", "width"], ["shape"], axis=0),
            node("Reshape", ["positive", "shape"], [result]),
        ],
    )


def output_in_a_branch() -> onnx.ModelProto:
    """W_O is multiplied by only in some calls."""
    model = build(Plan())
    full, _ = weight(model, "o_proj")
    old = reader(model, full)
    product = node("MatMul", [old.input[0], full], ["projected"])
    branched(model, old, ([product], [node("Identity", ["x"], ["as_it_was"])]), ["B", "S", E])
    return model


Made = Callable[[], onnx.ModelProto]

FOLDED: dict[str, tuple[Made, str]] = {
    "queries of heads": (partial(queries_of_heads, "bse,ehk->bshk", 0, 2, 1, 3), "fold-q"),
    "queries, tokens first": (partial(tokens_first, "q_b"), "fold-q"),
    "output, tokens first": (partial(tokens_first, "o_proj"), "fold-o"),
    "output, flat": (partial(flat, "o_proj"), "fold-o"),
    "output by einsum": (partial(by_einsum, "o_proj", "bsv,ve->bse"), "fold-o"),
}
BLOCKED: dict[str, tuple[Made, str]] = {
    "queries of heads, heads first": (partial(queries_of_heads, "bse,ehk->bhsk"), "fold-q"),
    "queries, width first": (partial(by_einsum, "q_b", "bse,ek->bks", 0, 2, 1), "fold-q"),
    "queries, flat": (partial(flat, "q_b"), "fold-q"),
    "queries of sums": (queries_of_sums, "fold-q"),
    "queries by convolution": (partial(by_convolution, "q_b"), "fold-q"),
    "output, width first": (partial(by_einsum, "o_proj", "bsv,ve->bes", 0, 2, 1), "fold-o"),
    "output by einsum, tokens first": (
        partial(by_einsum, "o_proj", "bsv,ve->sbe", 1, 0, 2),
        "fold-o",
    ),
    "output in a branch": (output_in_a_branch, "fold-o"),
    "output by convolution": (partial(by_convolution, "o_proj"), "fold-o"),
}


@pytest.mark.parametrize(("made", "absorb"), FOLDED.values(), ids=FOLDED)
def test_it_is_folded(made: Made, absorb: str) -> None:
    found = equal_or_refused(made(), sizes=SIZES, absorb=absorb)
    assert (found.status, found.codes) == ("equal", ()), found


@pytest.mark.parametrize(("made", "absorb"), BLOCKED.values(), ids=BLOCKED)
def test_it_is_not_folded(made: Made, absorb: str) -> None:
    found = equal_or_refused(made(), sizes=SIZES, absorb=absorb)
    assert (found.status, found.codes) == ("equal", ("fold_blocked",)), found


@pytest.mark.parametrize("absorb", ["factored", "fold-q", "fold"])
def test_a_query_that_sees_nothing_is_zero_in_every_form(absorb: str) -> None:
    """A mask that fills with a number lets it attend to all keys alike."""
    model = build(Plan(mask="boolean", fill="large"))
    made = ir.to_proto(mla_opt.optimize(model, verify=False, absorb=absorb).model)
    before, after = (Runner(each, understand(each)) for each in (model, made))
    given = Feeds(before.inputs, Size(2, 3, 4)).draw()
    given["mask"][1, 0, 1] = True
    given["mask"][0, 0, 2] = False
    assert deviation(before.run(given)["y"], after.run(given)["y"]) < 1e-5


def parts_of_query(graph: Any, site: Any) -> tuple[Any, ...]:
    """What the query is put together of."""
    return tuple(graph.operation(graph.producer(site.core.query)).data)


def queries_with(dims: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether the fold of a site holds, as it is, and where keys have ``k_pe`` in ``dims``."""
    graph = graph_of(Block())
    run(graph, *EXTRACT)
    (site,) = graph.sites
    assert site.weights is not None
    fold = query_projection(graph, site)
    parts = parts_of_query(graph, site)
    before = query_holds(graph, site, fold, parts)
    rest = tuple(dim for dim in range(12) if dim not in dims)
    site.weights = dataclasses.replace(site.weights, rope_dims=dims, nope_dims=rest)
    return before, query_holds(graph, site, fold, parts)


@pytest.mark.parametrize("dims", [(8, 9, 11, 10), (0, 1, 2, 3), (11, 10, 9, 8)])
def test_a_fold_into_other_dims_is_noticed_by_running_it(dims: tuple[int, ...]) -> None:
    assert queries_with(dims) == (True, False)


@pytest.mark.parametrize("change", ["weight", "rope_weight"])
def test_a_wrong_matrix_is_noticed(change: str) -> None:
    graph = graph_of(Block())
    run(graph, *EXTRACT)
    (site,) = graph.sites
    fold = query_projection(graph, site)
    matrix = getattr(fold, change).copy()
    matrix[:, -1] += 0.01
    wrong = dataclasses.replace(fold, **{change: matrix})
    assert not query_holds(graph, site, wrong, parts_of_query(graph, site))


def test_a_wrong_output_matrix_is_noticed() -> None:
    graph = graph_of(Block())
    run(graph, *EXTRACT)
    (site,) = graph.sites
    fold = output_projection(graph, site)
    assert output_holds(graph, site, fold)
    weight = fold.weight[::-1].copy()
    assert not output_holds(graph, site, dataclasses.replace(fold, weight=weight))


@pytest.mark.parametrize("asked", ["fold-q", "fold-o"])
def test_a_fold_that_does_not_hold_is_blocked(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("query_holds", "output_holds"):
        monkeypatch.setattr(f"mla_opt.matching.folding.{name}", lambda *_: False)
    result = mla_opt.optimize(build(Plan()), verify=False, absorb=asked)  # type: ignore[arg-type]
    assert [(each.code, "another result" in each.reason) for each in result.report.refusals] == [
        ("fold_blocked", True)
    ]
