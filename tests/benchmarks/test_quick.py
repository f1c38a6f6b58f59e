"""The benchmark runs, on tiny models: every table and every figure comes out. Nothing is asserted
about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mla_opt.benchmarking.machine import Machine
from mla_opt.benchmarking.turns import Timing
from tests.benchmarks import figures, models, optimize_time
from tests.benchmarks.dims import LITE
from tests.benchmarks.optimize_time import Depth, Run
from tests.benchmarks.runner import Case
from tests.benchmarks.sections import SECTIONS

pytest.importorskip("torch")
pytest.importorskip("transformers")


Reports = tuple[dict[str, Any], str, str]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """The JSON, the Markdown and the standard output of `--quick`."""
    return quick(tmp_path_factory.mktemp("bench"))


def quick(folder: Path, *only: str) -> Reports:
    """Run it, or a part of it.

    With a folder of models of its own: each worker of a parallel run comes here, and models that
    mla-opt makes are made anew while another may be reading them.
    """
    environment = {**os.environ, models.CACHE_VARIABLE: str(folder / "models")}
    command = [sys.executable, "-m", "tests.benchmarks", "--quick"]
    command += [word for section in only for word in ("--only", section)]
    command += ["--json", str(folder / "out.json"), "--markdown", str(folder / "out.md")]
    done = subprocess.run(
        command, cwd=models.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((folder / "out.json").read_text())
    return report, (folder / "out.md").read_text(), done.stdout


@pytest.mark.long
def test_a_section_is_measured_by_itself(tmp_path: Path) -> None:
    report, text, printed = quick(tmp_path, "kernel")
    assert set(report["results"]) == {"kernel"}
    assert "`python -m tests.benchmarks --quick --only kernel`" in text
    assert "targets met" in printed


@pytest.mark.sweep
def test_every_section_is_measured(reports: Reports) -> None:
    report, _, _ = reports
    assert set(report["results"]) == {*SECTIONS, "static"}
    assert report["failed"] == []


@pytest.mark.parametrize("section", ["decode", "memory", "prefill", "v3", "sweep"])
@pytest.mark.sweep
def test_variants_agree_with_the_original(reports: Reports, section: str) -> None:
    ours = figures.KERNEL if section == "sweep" else figures.OPTIMIZED
    for case, timings in reports[0]["results"][section].items():
        assert {figures.ORIGINAL, ours} <= set(timings), case
        for name, timing in timings.items():
            error = timing["logits_error"]
            if name == figures.ORIGINAL_457:
                assert error is None, "random rows of an expanded cache stand for another past"
            else:
                assert error < 1e-3, (case, name)


@pytest.mark.sweep
def test_both_parts_of_the_gain_are_reported(reports: Reports) -> None:
    text = " ".join(figure["what"] for figure in reports[0]["figures"])
    for words in (
        "whole gain",
        "part 1",
        "part 2",
        "times less",
        "share of the limit",
        "were it no more than that",
        "better form",
        "multiply-adds",
        "two threads over one",
        "prompt of 64 in chunks",
        "of the limit",
        "products of a layer",
        "optimize",
    ):
        assert words in text


@pytest.mark.sweep
def test_markdown_names_command_and_machine(reports: Reports) -> None:
    report, text, out = reports
    assert "`python -m tests.benchmarks --quick" in text
    assert report["machine"]["cpu"] in text
    assert "| figure | measured (min) | by medians | target | verdict |" in text
    assert "targets met" in out


def test_verdicts_follow_the_direction_of_the_target() -> None:
    assert figures.Figure("faster", 16.0, target=15.0).met
    assert not figures.Figure("faster", 14.0, target=15.0).met
    assert figures.Figure("seconds", 4.0, target=5.0, at_least=False).met
    assert figures.Figure("no promise", 1.0).met is None


def test_the_faster_clean_graph_is_the_baseline() -> None:
    def timing(best: float) -> Timing:
        return Timing((best, best + 1), 0.0, 0.0, None)

    both = {figures.CLEAN: timing(5.0), figures.CLEAN_BY_HAND: timing(4.0)}
    assert figures.cleanest(both) == figures.CLEAN_BY_HAND
    assert figures.cleanest({}) is None


def test_what_a_step_cannot_do_without() -> None:
    """Counted in the exported file: its matrices have these numbers, embeddings included."""
    assert LITE.step_weights + LITE.vocab * LITE.hidden_size == 56_885_248
    timing = Timing((20.0, 21.0), 0.0, 0.0, None)
    rate = 4 * (LITE.step_weights + 2 * 1000 * 576) / 1e9 / 10e-3  # read within 10 ms
    machine = Machine("", 2, 24.0, "", "", 2, 100.0, rate)
    found = figures.ceiling_figures(Case("decode", 1000), {figures.ORIGINAL: timing}, LITE, machine)
    assert [figure.value for figure in found] == pytest.approx([10.0, 2.0])


@pytest.mark.parametrize(("power", "low", "high"), [(1, 0.99, 1.01), (2, 1.2, 2.0)])
def test_bend_tells_a_line_from_a_square_law(power: int, low: float, high: float) -> None:
    depths = [
        Depth(n, 0.0, Run(1.0, 0.0, 0.0), Run(1.0 + n**power, 0.0, 0.0)) for n in (7, 14, 27, 61)
    ]
    assert low <= optimize_time.bend(depths) <= high
