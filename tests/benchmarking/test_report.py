"""The report: its JSON, its tables, its picture."""

from __future__ import annotations

import importlib.util
import io
import json

import jsonschema
import pytest
from rich.console import Console

from mla_opt.benchmarking import plot
from mla_opt.benchmarking.report import Agreement, BenchReport
from mla_opt.benchmarking.schema import BENCH
from mla_opt.benchmarking.table import bench_tables, length, number
from mla_opt.errors import InputError
from tests.benchmarking import examples


def shown(report: BenchReport) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        for each in bench_tables(report):
            console.print(each)
    return capture.get()


def test_json_follows_the_schema_and_comes_back() -> None:
    text = examples.report().to_json()
    jsonschema.validate(json.loads(text), BENCH.load())
    assert BenchReport.from_json(text).measurements == examples.report().measurements


def test_tables_say_what_a_person_needs() -> None:
    text = shown(examples.report())
    for words in ("one new token", "8 new tokens", "8k", "8.00x", "50% FMA, 10% read", "expands"):
        assert words in text
    assert "not measured: another: it cannot be imported; pip install another" in text
    assert "a product" in text
    assert "note: something to know" in text


def test_a_peer_that_differs_is_marked_and_fails_nothing() -> None:
    report = examples.report()
    assert "5e-01 WRONG" in shown(report)
    assert report.wrong == ()


def test_a_variant_that_differs_fails() -> None:
    report = examples.report(examples.OTHER)
    assert {one.participant for one in report.wrong} == {"optimized"}


@pytest.mark.parametrize(
    ("agreement", "wrong"),
    [
        (Agreement("not", None, None), False),
        (Agreement("prompt", 1e-5, 1e-4), False),
        (Agreement("prompt", 1e-3, 1e-4), True),
        (Agreement("prompt", None, 1e-4, problem="NaN"), True),
    ],
)
def test_what_counts_as_wrong(agreement: Agreement, wrong: bool) -> None:
    assert agreement.wrong is wrong


@pytest.mark.parametrize(("tokens", "text"), [(0, "0"), (512, "512"), (8192, "8k"), (8191, "8191")])
def test_lengths(tokens: int, text: str) -> None:
    assert length(tokens) == text


def test_numbers_have_three_digits() -> None:
    assert [number(x) for x in (1.234, 12.34, 1234.0)] == ["1.23", "12.3", "1234"]


def test_without_matplotlib_the_error_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install matplotlib$"):
        plot.plot(examples.report(), io.BytesIO())


def test_the_picture_is_a_png() -> None:
    pytest.importorskip("matplotlib")
    stream = io.BytesIO()
    plot.plot(examples.report(), stream)
    assert stream.getvalue().startswith(b"\x89PNG")
