"""PyTorch modules in the manner of public code: found in their torch.export form, and in ONNX."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch

import mla_opt
from tests.axes import modules, spellings
from tests.axes.harness import FEW, equal_or_refused
from tests.axes.modules import HIDDEN, Absorbed, Buffers, Latent

MODULES = modules.MODULES | spellings.SPELLINGS
LOOKALIKES = modules.LOOKALIKES | spellings.OTHERS

#: One of each kind; small ONNX models hold the others in every run.
QUICK = {
    "Naive",
    "Absorbed",
    "Grouped",
    "Folded",
    "Spelled",
    "OfRankFive",
    "Windowed",
    "WidthShifted",
    "ThirdSwapped",
    "OtherProduct",
    "OneMoreAtTheOtherEnd",
}
SIZES = ((1, 1, 0), (2, 1, 7), (3, 4, 2), (5, 9, 31), (1, 230, 0), (1, 4, 1100))
PROMPTS = ((1, 1, 0), (3, 4, 0), (5, 9, 0), (1, 300, 0))
CALLS = ((4, 0), (1, 4), (30, 5), (1, 35))
TOLERANCE = 1e-5


def params(kinds):
    return [
        pytest.param(kind, id=name, marks=() if name in QUICK else pytest.mark.sweep)
        for name, kind in kinds.items()
    ]


def worst(before, after, calls) -> float:
    """The largest deviation over outputs and calls, relative to each output."""
    errors = []
    with torch.no_grad():
        for given in calls:
            try:
                expected = torch.utils._pytree.tree_leaves(before(*given))
            except AssertionError:  # the export holds for shorter lengths only, and says so
                continue
            seen = torch.utils._pytree.tree_leaves(after(*given))
            assert [each.shape for each in seen] == [each.shape for each in expected]
            for one, other in zip(expected, seen):
                errors.append(float((one - other).abs().max() / one.abs().max()))
    return max(errors)


@pytest.mark.parametrize("kind", params(MODULES))
def test_a_program_is_rewritten_and_equal(kind: type[Latent]) -> None:
    module = modules.made(kind)
    program = modules.exported(module)
    result = mla_opt.optimize(program, verify=False)
    assert len(result.report.sites) == 1
    sizes = SIZES if module.caches else PROMPTS
    calls = [modules.arguments(module, size) for size in sizes]
    assert worst(program.module(), result.model.module(), calls) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        pytest.param(spellings.QueriesOfHeads, [], marks=pytest.mark.sweep),
        (spellings.QueriesOfSums, ["fold_blocked"]),
    ],
    ids=["heads", "sums"],
)
def test_folds_of_a_program(kind: type[Latent], codes: list[str]) -> None:
    module = modules.made(kind)
    program = modules.exported(module)
    result = mla_opt.optimize(program, verify=False, absorb="fold")
    assert [refusal.code for refusal in result.report.refusals] == codes
    calls = [modules.arguments(module, size) for size in SIZES[:3]]
    assert worst(program.module(), result.model.module(), calls) < TOLERANCE


@pytest.mark.parametrize("kind", [Latent, pytest.param(Absorbed, marks=pytest.mark.sweep)])
def test_buffers_written_from_a_place_on(kind: type[Latent]) -> None:
    program = modules.exported_buffers(Buffers(modules.made(kind)).eval())
    result = mla_opt.optimize(program, verify=False)
    assert len(result.report.sites) == 1
    calls = [(torch.randn(3, tokens, HIDDEN), past) for tokens, past in CALLS]
    before, after = (copy.deepcopy(each.module()) for each in (program, result.model))
    assert worst(before, after, calls) < TOLERANCE


@pytest.mark.parametrize("kind", params(LOOKALIKES))
def test_a_program_that_only_looks_like_it_is_equal_or_refused(kind: type[Latent]) -> None:
    module = modules.made(kind)
    program = modules.exported(module)
    try:
        result = mla_opt.optimize(program, verify=False)
    except mla_opt.NothingMatchedError:
        return
    calls = [modules.arguments(module, size) for size in SIZES]
    assert worst(program.module(), result.model.module(), calls) < TOLERANCE


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [*MODULES.values(), *LOOKALIKES.values()])
def test_the_same_in_onnx(kind: type[Latent], tmp_path: Path) -> None:
    module = modules.made(kind)
    path = tmp_path / "model.onnx"
    program = modules.exported(module)
    names = ["hidden", *(f"past.{place}" for place in range(len(module.caches)))]
    outputs = ["y", *(f"present.{place}" for place in range(len(module.caches)))]
    torch.onnx.export(program, (), str(path), input_names=names, output_names=outputs, dynamo=True)
    found = equal_or_refused(onnx.load(path), sizes=FEW)
    if kind.__name__ in MODULES:
        assert (found.status, found.matched) == ("equal", 1), found
    else:
        assert not found.wrong, found
