"""Every combination of options, on one export: each computes what the export computed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from tests.end_to_end import protos
from tests.end_to_end.driving import Generator, following, onnxruntime_run, prompt, valid
from tests.exports.feeds import Feeds

TARGETS = ("onnxruntime", "portable")
ABSORB = ("auto", "factored", "fold-q", "fold-o", "fold", "none")
CACHES = ("keep", "packed", "static:128")
PREFILL = ("auto", "absorbed", "expanded")


def is_contradiction(target: str, absorb: str, cache: str, prefill: str) -> bool:
    """What is refused: a buffer needs the operator, expanding what folds nothing."""
    if absorb == "none":
        return cache == "static:128" or prefill == "absorbed"
    held = target == "onnxruntime" and absorb in ("auto", "factored")
    static = cache == "static:128" and not held
    return prefill == "expanded" and (static or absorb.startswith("fold"))


COMBINATIONS = [
    each
    for each in itertools.product(TARGETS, ABSORB, CACHES, PREFILL)
    if not is_contradiction(*each)
]
#: Logits have a spread of about 2; measured: below 1e-5.
TOLERANCE = 1e-4
#: Above the crossover of 41 new tokens, so that `auto` takes both branches.
LONG = 60
#: Sizes (batch, prompt, padding, decode steps).
RUNS = ((2, 7, 2, 5), (1, LONG, 0, 2), (2, 1, 0, 3))
Call = tuple[Feeds, np.ndarray]


def named(combination: tuple[str, ...]) -> Any:
    """A combination; a half of them, in which every two choices meet, are quick."""
    choices = zip((TARGETS, ABSORB, CACHES, PREFILL), combination, strict=True)
    odd = sum(known.index(chosen) for known, chosen in choices) % 2
    marks = pytest.mark.sweep if odd else ()
    return pytest.param(*combination, id="-".join(combination), marks=marks)


@pytest.fixture(scope="module")
def truth(plain: Path) -> list[list[Call]]:
    """Feeds and logits of the export itself."""
    model = onnx.load(plain)
    run = onnxruntime_run(plain.read_bytes())
    return [history(Generator(model, run, sizes[0]), *sizes) for sizes in RUNS]


def history(model: Generator, batch: int, length: int, padding: int, steps: int) -> list[Call]:
    calls, tokens = [], prompt(batch, length, padding)
    for _ in range(steps + 1):
        calls.append((tokens, model(tokens)))
        tokens = following(*calls[-1])
    return calls


def optimize(path: Path, target: str, absorb: str, cache: str, prefill: str) -> Any:
    options: dict[str, Any] = {"target": target, "absorb": absorb}
    return mla_opt.optimize(path, verify=False, cache=cache, prefill=prefill, **options)


@pytest.mark.parametrize(
    ("target", "absorb", "cache", "prefill"), [named(each) for each in COMBINATIONS]
)
def test_combination(
    plain: Path, truth: list[list[Call]], target: str, absorb: str, cache: str, prefill: str
) -> None:
    result = optimize(plain, target, absorb, cache, prefill)
    model = ir.to_proto(result.model)
    check_graph(model, target, cache)
    assert {site.form for site in result.report.sites} <= forms(absorb, prefill)
    run = onnxruntime_run(model.SerializeToString())
    for sizes, calls in zip(RUNS, truth, strict=True):
        candidate = Generator(model, run, sizes[0], capacity=128)
        for tokens, expected in calls:
            found = candidate(tokens)
            gap = np.abs(valid(tokens, found) - valid(tokens, expected)).max()
            assert gap < TOLERANCE, (sizes, gap)


def forms(absorb: str, prefill: str) -> set[str]:
    """The forms that may come of an option."""
    chosen = {"factored", "fold-q", "fold-o", "fold"} if absorb == "auto" else {absorb}
    return chosen | ({"none"} if prefill == "expanded" else set())


def check_graph(model: onnx.ModelProto, target: str, cache: str) -> None:
    assert protos.checker_complaint(model) == ""
    protos.infer_strictly(model)
    count = protos.operators(model)
    # A buffer that is written in place is written by ScatterND; keys are put together by none.
    assert cache.startswith("static") or count["ScatterND"] == 0
    if target == "portable":
        assert list(model.functions) == []
        assert protos.opsets(model) == {"": 18}
        assert {node.domain for node in protos.nodes(model.graph)} == {""}
    states = [value for value in model.graph.input if protos.STATE.search(value.name)]
    assert len(states) == {"keep": 4, "packed": 2}.get(cache, len(states))


@pytest.mark.parametrize(
    ("target", "absorb", "cache", "prefill"),
    [
        named(("onnxruntime", "fold", "packed", "auto")),
        named(("portable", "fold-q", "keep", "absorbed")),
        named(("portable", "auto", "packed", "auto")),
        named(("onnxruntime", "fold-o", "static:128", "absorbed")),
        named(("onnxruntime", "none", "packed", "auto")),
    ],
)
def test_verification_follows(
    plain: Path, target: str, absorb: str, cache: str, prefill: str
) -> None:
    options: dict[str, Any] = {"target": target, "absorb": absorb}
    report = mla_opt.optimize(plain, cache=cache, prefill=prefill, **options).report
    proof: Any = report.verification
    assert proof["passed"]
    detected = {control["name"] for control in proof["controls"] if control["detected"]}
    expected = {"scale", "rope"} if absorb != "none" else set()
    # Folded, W_UK is no tensor of its own whose heads could be swapped.
    assert detected == expected | ({"heads"} if absorb in ("auto", "fold-o") else set())


def test_packing_joins_the_two_caches(plain: Path) -> None:
    result = mla_opt.optimize(plain, cache="packed", verify=False)
    states = [v for v in ir.to_proto(result.model).graph.input if protos.STATE.search(v.name)]
    assert [value.type.tensor_type.shape.dim[-1].dim_value for value in states] == [56, 56]
    kinds = {change.kind for change in result.report.interface_changes}
    assert kinds == {"input", "output"}
    assert all(change.why for change in result.report.interface_changes)


@pytest.mark.parametrize("target", TARGETS)
def test_a_buffer_needs_absorbed_attention(plain: Path, target: Any) -> None:
    with pytest.raises(mla_opt.InputError, match="static needs absorbed attention"):
        mla_opt.optimize(plain, target=target, absorb="none", cache="static:128", verify=False)


def test_keeping_changes_no_interface(plain: Path) -> None:
    assert mla_opt.optimize(plain, verify=False).report.interface_changes == ()


@pytest.mark.parametrize("option", ["target", "absorb", "cache", "prefill"])
def test_an_unknown_option_is_refused(plain: Path, option: str) -> None:
    with pytest.raises(mla_opt.InputError, match=f"{option}( is|:) 'both'"):
        mla_opt.optimize(plain, **{option: "both"})  # type: ignore[arg-type]
