"""``mla-opt bench`` on real models of every cache layout, and on what cannot be timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from onnx import numpy_helper

from mla_opt.benchmarking import failures, machine
from mla_opt.benchmarking.schema import BENCH
from tests.cli.conftest import Run
from tests.verify import toys

Make = Callable[[], onnx.ModelProto]
PAIRS: dict[str, tuple[Make, Make, str]] = {
    "keep": (toys.original, toys.optimized, "same past"),
    "static": (toys.original, toys.optimized_static, "same past"),
    "expanded to packed": (toys.original_expanded, toys.optimized_packed, "prompt"),
    "expanded to static": (toys.original_expanded, toys.optimized_static, "prompt"),
}
#: One of each kind of comparison; each case starts six processes.
QUICK = ("static", "expanded to packed")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIZE", machine.QUICK_SIZE)
    monkeypatch.setattr(machine, "MEGABYTES", machine.QUICK_MEGABYTES)


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def save(original: onnx.ModelProto, optimized: onnx.ModelProto) -> tuple[Path, Path]:
        paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
        for path, model in zip(paths, (original, optimized), strict=True):
            path.write_bytes(model.SerializeToString())
        return paths

    return save


SHORT = ("--rounds", "1", "--threads", "1", "--seconds", "0.1")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK else pytest.mark.sweep) for case in PAIRS],
)
def test_every_cache_layout_is_timed_and_compared(
    run: Run, pair: Callable[..., tuple[Path, Path]], tmp_path: Path, case: str
) -> None:
    original, optimized, compared = PAIRS[case]
    out = tmp_path / "r.json"
    arguments = ["--context", "9", "--batch", "2", *SHORT, "--json", out]
    result = run("bench", *pair(original(), optimized()), *arguments)
    assert result.exit_code == 0, result.stderr
    assert "one new token, batch 2, 1 threads" in result.stdout
    report = json.loads(out.read_text())
    jsonschema.validate(report, BENCH.load())
    ours = [m for m in report["measurements"] if m["participant"] == "optimized"]
    assert [m["context"] for m in ours] == [9]
    for one in ours:
        assert one["agreement"]["compared"] == compared
        assert one["agreement"]["error"] < 1e-5
        assert one["min_ms"] > 0
        assert one["beyond_mb"] >= 0


def test_long_queries_and_an_empty_cache(
    run: Run, pair: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    models = pair(toys.original(), toys.optimized_static())
    result = run("bench", *models, "--context", "0", "--query", "5", *SHORT, "--json", out)
    assert result.exit_code == 0, result.stderr
    assert "5 new tokens, batch 1" in result.stdout


def test_wrong_outputs_exit_with_4(run: Run, pair: Callable[..., tuple[Path, Path]]) -> None:
    broken: Any = toys.optimized()
    weight = next(i for i in broken.graph.initializer if len(i.dims) == 3)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    result = run("bench", *pair(toys.original(), broken), "--context", "6", *SHORT)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: outputs differ: optimized, batch 1")
    assert "WRONG" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "32"], "holds 32 tokens, and 33 are needed"),
        (["--context", "4", "--query", "40"], "holds 32 tokens, and 44 are needed"),
        (["--context", "x"], "--context: 'x' is no whole number"),
        (["--batch", "0"], "--batch: '0' is too small"),
        (["--peers"], "--peers needs --peers-model"),
        (["--peers", "--peers-model", "."], "holds no config.json"),
        (["--peers-model", "."], "--peers-model is for --peers"),
        (["--json", "missing/r.json"], "missing"),
        (["--seconds", "-1"], "'-1' is too small"),
        (["--seconds", "soon"], "'soon' is no number"),
        (["--rounds", "0"], "'0' is too small: it must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, pair: Callable[..., tuple[Path, Path]], arguments: list[str], words: str
) -> None:
    models = pair(toys.original(), toys.optimized_static())
    result = run("bench", *models, "--context", "4", *SHORT, *arguments)
    assert result.exit_code == 2, result.stderr
    assert words in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 or lines[0].startswith("Usage: ")


def test_models_that_do_not_belong_together(
    run: Run, pair: Callable[..., tuple[Path, Path]]
) -> None:
    result = run("bench", *pair(toys.optimized_static(), toys.optimized()), "--context", "4")
    assert result.exit_code == 2
    assert "the models differ in their inputs" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("which", [0, 1])
def test_no_model_is_written_over(
    run: Run, pair: Callable[..., tuple[Path, Path]], option: str, which: int
) -> None:
    models = pair(toys.original(), toys.optimized())
    before = models[which].read_bytes()
    link = models[which].with_name("link")
    link.symlink_to(models[which])
    result = run("bench", *models, "--context", "4", *SHORT, option, link, "--force")
    assert result.exit_code == 2
    assert f"the same file as {models[which]}" in result.stderr
    assert models[which].read_bytes() == before


def test_two_results_in_one_file(
    run: Run, pair: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    models = pair(toys.original(), toys.optimized())
    result = run("bench", *models, "--json", both, "--plot", both)
    assert result.exit_code == 2
    assert "--json and for --plot" in result.stderr


def test_a_missing_file(run: Run, model: Path) -> None:
    result = run("bench", model, model.with_name("none.onnx"))
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_too_little_memory_is_said_before_anything_starts(
    run: Run, pair: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures.memory, "available", lambda: 0.0)
    result = run("bench", *pair(toys.original(), toys.optimized()), "--context", "4")
    assert result.exit_code == 2
    assert "GB of memory" in result.stderr


def test_a_plot_needs_matplotlib(
    run: Run, pair: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    models = pair(toys.original(), toys.optimized())
    result = run("bench", *models, "--context", "4", *SHORT, "--plot", tmp_path / "x.png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert result.exit_code == 2
        assert "pip install matplotlib" in result.stderr
    else:
        assert (tmp_path / "x.png").exists()
