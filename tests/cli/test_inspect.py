"""``mla-opt inspect``: tables, JSON, and the workload that the figures are for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mla_opt.report import InspectionReport
from mla_opt.report.plain import to_plain
from mla_opt.report.schema import INSPECTION
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.report import examples


def test_tables(run: Run, api: FakeApi, model: Path) -> None:
    result = run("inspect", model, "--batch", 2, "--query", 3, "--context", 100)
    assert result.exit_code == 0, result.stderr
    assert "layers 0-2 (3 sites)" in result.stdout
    assert "B=2 S=3 T=100" in result.stdout
    assert "query-depends-on-latent" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_is_nothing_but_json(run: Run, api: FakeApi, model: Path) -> None:
    result = run("inspect", model, "--json", "--context", 4096)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    validator = jsonschema.Draft202012Validator(INSPECTION.load())
    validator.validate(data)
    report = InspectionReport.from_json(result.stdout)
    assert report.model is not None
    assert report.model.path == str(model)
    assert report.attentions[0].costs is not None
    assert report.attentions[0].costs.total_len == 4096
    # The example has a node of a domain that nobody defines only in its opset imports.
    assert report.notes == ()


def test_unknown_operators_are_told(run: Run, api: FakeApi, tmp_path: Path) -> None:
    from onnx import helper

    from tests.files.small_models import proto, save

    odd = helper.make_node("Odd", ["y"], ["z"], domain="other")
    result = run("inspect", save(tmp_path / "odd.onnx", proto(extra=(odd,))))
    assert result.exit_code == 0
    assert "other::Odd" in result.stdout


@pytest.mark.parametrize(
    ("attentions", "words"),
    [
        ((), "no attention that mla-opt can see"),
        (examples.inspection().attentions[3:], "none of 1 attentions is latent"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nothing_matched_is_told_and_exits_with_3(
    run: Run,
    model: Path,
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    attentions: Any,
    words: str,
    options: tuple[str, ...],
) -> None:
    report = InspectionReport(attentions)
    monkeypatch.setattr("mla_opt.api.inspect", lambda _: report)
    result = run("inspect", model, *options)
    assert result.exit_code == 3
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    if options:
        assert json.loads(result.stdout)["attentions"] == to_plain(attentions)
    optimized = dataclasses.replace(report, operators=(examples.operator(0),))
    monkeypatch.setattr("mla_opt.api.inspect", lambda _: optimized)
    assert run("inspect", model, *options).exit_code == 0


def test_tokens_are_written_with_k(run: Run, api: FakeApi, model: Path) -> None:
    result = run("inspect", model, "--context", "8k", "--query", "1K")
    assert result.exit_code == 0, result.stderr
    assert "S=1024 T=8192" in result.stdout


@pytest.mark.parametrize("options", [("--context", 0), ("--query", 9, "--context", 8)])
def test_impossible_workload(
    run: Run, api: FakeApi, model: Path, options: tuple[str | int, ...]
) -> None:
    result = run("inspect", model, *options)
    assert result.exit_code == 2
    assert "--context" in result.stderr


def test_verbose_names_the_nodes(run: Run, api: FakeApi, model: Path) -> None:
    assert "/layers.3/MatMul" not in run("inspect", model).stdout
    assert "/layers.3/MatMul" in run("inspect", model, "--verbose").stdout
