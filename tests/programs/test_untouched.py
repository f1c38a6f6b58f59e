"""Models without latent attention, and near misses of it, as programs: refused, and not touched."""

from __future__ import annotations

import pytest

import mla_opt
from tests.exports.controls import CONTROLS, GENUINE
from tests.exports.refusals import check_refusals
from tests.programs import exporting

#: A decoder, and near misses of each kind; the sweep has all, and `tests/axes` more look-alikes.
QUICK = {"llama", "separate_latents", "weight_as_input", "rope_per_head", "nonlinear_values"}
#: Its query is made of the rows of keys and values. That is refused where the walk sees it, and
#: rewritten, equal, where it does not.
EQUAL = {"query_from_latent_projection"}
#: PyTorch's own decomposition fails on it: the strides of its attention's output are not what a
#: view behind it takes.
NOT_DECOMPOSED = {"gpt2"}


def check(name: str, *, decomposed: bool) -> None:
    program = exporting.control(name)
    if decomposed:
        program = program.run_decompositions()
    before = str(program.graph), list(program.state_dict)
    with pytest.raises(mla_opt.NothingMatchedError) as caught:
        mla_opt.optimize(program)
    assert caught.value.report is not None
    check_refusals(name, caught.value.report)
    assert mla_opt.optimize(program, allow_unmatched=True).model is program
    assert (str(program.graph), list(program.state_dict)) == before


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.sweep)
        for name in CONTROLS
        if name not in EQUAL
    ],
)
def test_a_control_is_refused_and_stays_the_same_object(name: str) -> None:
    check(name, decomposed=False)


@pytest.mark.parametrize("name", ["separate_latents", "token_reversal"])
def test_a_decomposed_control_is_refused(name: str) -> None:
    check(name, decomposed=True)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "name", [name for name in CONTROLS if name not in {*NOT_DECOMPOSED, *EQUAL}]
)
def test_every_decomposed_control_is_refused(name: str) -> None:
    check(name, decomposed=True)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_genuine_block_is_found(decomposed: bool) -> None:
    """What the near misses are near to: they are refused for what they differ in."""
    program = exporting.control(GENUINE.name)
    report = mla_opt.optimize(program.run_decompositions() if decomposed else program).report
    assert (len(report.sites), report.refusals) == (1, ())


@pytest.mark.parametrize("name", sorted(EQUAL))
def test_what_is_rewritten_all_the_same_is_verified(name: str) -> None:
    report = mla_opt.optimize(exporting.control(name)).report
    assert report.verification is not None
    assert report.verification["passed"]
