"""Programs from transformers 4.57, which cache expanded keys and values: the cache becomes latent.

The interface changes, so the two programs are fed each its own cache and compared by their logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mla_opt
from tests.exports import cache, expanded_cache
from tests.exports.feeds import token_feeds
from tests.exports.spec import ExportSpec
from tests.programs.exporting import error

#: Batch, new tokens and past: a padded prompt, steps, a chunk.
CALLS = ((3, 9, 0), (3, 1, 9), (3, 1, 10), (3, 5, 11), (3, 1, 16))
LATENT = (48, 8, 48, 8)
EXPANDED = (32, 20, 32, 20)


def loaded(family: str, attention: str, folder: Path) -> torch.export.ExportedProgram:
    try:
        python = expanded_cache.interpreter()
    except LookupError as missing:
        pytest.skip(str(missing))
    path, spec = folder / "model.pt2", ExportSpec(family, "dynamo457", attention=attention)
    module = "tests.exports.expanded_cache"
    cache.run_module(python, module, "program", spec.to_json(), str(path))
    return torch.export.load(path)


def tokens(batch: int, query: int, past: int) -> list[torch.Tensor]:
    feeds = token_feeds(batch, query, past, left_padding=2, vocab=97, seed=past)
    return [torch.from_numpy(feeds[n]) for n in ("input_ids", "attention_mask", "position_ids")]


def empty(heads: int, widths: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(3, heads, 0, width) for width in widths]


def check(program: torch.export.ExportedProgram, folder: Path) -> None:
    result = mla_opt.optimize(program)
    report: Any = result.report
    assert report.verification["passed"]
    assert {site.cache_family for site in report.sites} == {"expanded"}
    kinds = [change.kind for change in report.interface_changes]
    assert kinds == ["input"] * 4 + ["output"] * 4
    assert [c.after.shape[-1] for c in report.interface_changes] == [*LATENT, *LATENT]
    torch.export.save(result.model, folder / "optimized.pt2")
    after = torch.export.load(folder / "optimized.pt2").module()
    check_calls(program.module(), after)


def check_calls(before: torch.nn.Module, after: torch.nn.Module) -> None:
    """Prompt, steps and a chunk, each program on the cache that it returned."""
    expanded, latent = empty(3, EXPANDED), empty(1, LATENT)
    for sizes in CALLS:
        given = tokens(*sizes)
        with torch.no_grad():
            wanted, *expanded = before(*given, *expanded)
            found, *latent = after(*given, *latent)
        valid = given[1][:, -sizes[1] :].bool()
        assert error([found[valid]], [wanted[valid]]) < 5e-5
        assert [tensor.shape[1] for tensor in latent] == [1] * 4


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return loaded("deepseek_v3", "sdpa", tmp_path_factory.mktemp("expanded"))


def test_the_cache_becomes_latent(program, tmp_path):
    check(program, tmp_path)


@pytest.mark.sweep
def test_the_cache_of_a_decomposed_program_becomes_latent(program, tmp_path):
    check(program.run_decompositions(), tmp_path)


def test_a_packed_cache(program):
    result = mla_opt.optimize(program, cache="packed")
    assert result.report.verification["passed"]
    widths = [tensor.shape[-1] for tensor in caches(result.model)]
    assert widths == [56, 56]


def caches(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """Example values of the cache inputs."""
    places = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    given = [places[str(name)].meta["val"] for name in program.graph_signature.user_inputs]
    return [value for value in given if value.ndim == 4]


@pytest.mark.sweep
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize(
    ("family", "attention"),
    [("deepseek_v3", "eager"), ("deepseek_v2", "sdpa"), ("deepseek_v2", "eager")],
)
def test_every_form(family, attention, decomposed, tmp_path):
    program = loaded(family, attention, tmp_path)
    check(program.run_decompositions() if decomposed else program, tmp_path)
