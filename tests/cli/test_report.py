"""``mla-opt report``: files in, one page out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mla_opt.models import demo_model
from mla_opt.report import InspectionReport, OptimizationReport
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.report import examples
from tests.report.pages import Page

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, what became of it, and the report of how."""
    from typer.testing import CliRunner

    from mla_opt.cli._app import app

    folder = tmp_path_factory.mktemp("demo")
    (folder / "demo.onnx").write_bytes(demo_model().read_bytes())
    arguments = ("optimize", folder / "demo.onnx", "--report", folder / "demo.json")
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.stderr
    return folder


def test_model_optimized_and_report(run: Run, demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    files = (demo / "demo.onnx", demo / "demo.mla.onnx", "--from-report", demo / "demo.json")
    done = run("report", *files, "-o", page, "--context", "4k", "--batch", 2)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"wrote {page} (")
    read = Page(page.read_text(encoding="utf-8"))
    report = OptimizationReport.from_json((demo / "demo.json").read_text())
    assert read.data["optimization"] == json.loads(report.to_json())
    assert read.data["workload"] == {"batch": 2, "query_len": 1, "total_len": 4096}
    assert len(read.data["optimized"]["operators"]) == 2
    assert "3 of 3 broken copies noticed" in read.text
    assert "MultiHeadLatentAttention" in read.text


def test_the_model_alone(run: Run, demo: Path) -> None:
    done = run("report", demo / "demo.onnx")
    assert done.exit_code == 0, done.stderr
    read = Page((demo / "demo.report.html").read_text(encoding="utf-8"))
    assert "optimize would make it" in read.text
    assert "Verification" not in read.text
    assert read.data["inspection"]["model"]["sha256"] in read.text


def test_nothing_is_replaced_without_force(
    run: Run, api: FakeApi, model: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    done = run("report", model, "-o", page)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert page.read_text() == "mine"
    assert run("report", model, "-o", page, "--force").exit_code == 0
    assert page.read_text().startswith("<!doctype html>")


def test_an_input_is_never_replaced(run: Run, api: FakeApi, model: Path) -> None:
    before = model.read_bytes()
    assert run("report", model, "-o", model, "--force").exit_code == 2
    assert model.read_bytes() == before


def test_where_nothing_matched_the_page_says_why_and_the_exit_code_too(
    run: Run, api: FakeApi, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = InspectionReport(examples.inspection().attentions[3:])
    monkeypatch.setattr("mla_opt.api.inspect", lambda _: missed)
    done = run("report", model, "-o", tmp_path / "page.html")
    assert done.exit_code == 3
    assert "none of 1 attentions is latent" in done.stderr
    assert "query-depends-on-latent" in (tmp_path / "page.html").read_text()


def test_files_that_do_not_belong_together(run: Run, demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    model, report = demo / "demo.onnx", demo / "demo.json"

    done = run("report", model, model, "-o", page)
    assert done.exit_code == 2
    assert "has no attention that mla-opt optimized" in done.stderr

    done = run("report", demo / "demo.mla.onnx", "--from-report", report, "-o", page)
    assert done.exit_code == 2
    assert "is about another file than" in done.stderr

    told = OptimizationReport.from_json(report.read_text())
    nowhere = tmp_path / "nowhere.json"
    nowhere.write_text(replace(told, output=None).to_json())
    both = (model, demo / "demo.mla.onnx")
    done = run("report", *both, "--from-report", nowhere, "-o", page)
    assert done.exit_code == 2
    assert "wrote nothing" in done.stderr
    assert not page.exists()


def test_what_is_no_report(run: Run, demo: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text("{}")
    done = run("report", demo / "demo.onnx", "--from-report", odd, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "is no report of mla-opt optimize" in done.stderr


def test_a_context_without_room_for_the_new_tokens(run: Run, model: Path) -> None:
    done = run("report", model, "--query", 9, "--context", 8)
    assert done.exit_code == 2
    assert "--context" in done.stderr


def test_without_jinja(
    run: Run, api: FakeApi, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = run("report", model, "-o", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "pip install jinja2" in done.stderr
    assert not (tmp_path / "page.html").exists()
