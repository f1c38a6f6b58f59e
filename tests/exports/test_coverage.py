"""The coverage table is read back as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports import coverage
from tests.exports.cache import ROOT
from tests.exports.coverage import Outcome, Row

ROWS = [
    Row(("youtu", "dynamo", "18", "sdpa", "yes", "float32"), 2, "OK", Outcome(2, 1.5e-06, "")),
    Row(("axk2", "torchscript", "18", "eager", "no", "float32"), 0, "RuntimeError: a | b"),
    Row(("axk1", "hf decode", "20", "sdpa", "yes", "float32"), 2, "OK", Outcome(1, None, "why")),
    Row(("control: bert", "dynamo", "18", "", "", "float32"), 0, "OK", Outcome(0, None, "none")),
]


def test_rows_are_read_as_they_were_written() -> None:
    text = coverage.document(ROWS, 4)
    again = coverage.read(text)
    assert sorted(again, key=lambda row: row.labels) == sorted(ROWS, key=lambda row: row.labels)
    assert coverage.document(again, 4) == text


def test_the_sums_are_those_of_the_rows() -> None:
    text = " ".join(coverage.document(ROWS, 9).split())
    assert "4 of 9 exports of the matrix" in text
    assert "Of 3 exports of latent attention 2 could be made; in 1 of them" in text
    assert "The 1 controls have no latent attention, and none of them was changed" in text


@pytest.mark.skipif(not (ROOT / "coverage.md").exists(), reason="not a checkout")
def test_in_the_kept_table_all_is_found_and_nothing_else() -> None:
    rows = coverage.read(Path(ROOT, "coverage.md").read_text())
    assert len(rows) > 350
    assert [row.labels for row in rows if not row.good] == []
