"""Rows of the coverage table, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterable, Sequence

HEADER = (
    "family",
    "exporter",
    "opset",
    "attention",
    "cache",
    "dtype",
    "export",
    "matched",
    "max error",
    "why not",
)

#: Characters of a line of prose.
WIDTH = 120


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the optimizer made of a file.

    Attributes:
        matched: Latent attentions rewritten.
        error: The largest deviation verification saw; None if it did not run.
        why: Reasons for what was not rewritten, or the error that ended it.
        failed: Whether it ended in an error.
    """

    matched: int
    error: float | None
    why: str
    failed: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        labels: The first six columns.
        expected: Latent attentions the model has; none in a control.
        export: `OK`, or what the exporter said.
        outcome: What the optimizer made of it, if it came so far.
    """

    labels: tuple[str, ...]
    expected: int
    export: str = "OK"
    outcome: Outcome | None = None

    @property
    def is_control(self) -> bool:
        """Whether there is nothing to find."""
        return self.labels[0].startswith("control: ")

    @property
    def good(self) -> bool:
        """Whether all is found and nothing else: true too if there is no file to look at."""
        if self.outcome is None:
            return True
        return not self.outcome.failed and self.outcome.matched == self.expected

    def cells(self) -> list[str]:
        """The line as text, cell by cell."""
        cells = [*self.labels, self.export]
        if self.outcome is None:
            return [*cells, "", "", ""]
        error = "" if self.outcome.error is None else f"{self.outcome.error:.1e}"
        return [*cells, f"{self.outcome.matched}/{self.expected}", error, self.outcome.why]


def row_from_json(text: str) -> Row:
    """The inverse of `json.dumps(dataclasses.asdict(row))`."""
    fields = json.loads(text)
    outcome = fields.pop("outcome")
    labels = tuple(fields.pop("labels"))
    return Row(labels, **fields, outcome=Outcome(**outcome) if outcome else None)


def table(rows: Iterable[Row]) -> str:
    """The Markdown table."""
    lines = [line(HEADER), line(["---"] * len(HEADER))]
    return "\n".join(lines + [line(row.cells()) for row in rows]) + "\n"


def line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def summary(rows: Sequence[Row]) -> str:
    """How many exports there are, and how many attentions were found in them."""
    exported = [row for row in rows if row.export == "OK"]
    matched = sum(row.outcome.matched for row in exported if row.outcome)
    expected = sum(row.expected for row in exported)
    return (
        f"{len(exported)} of {len(rows)} exports written; "
        f"{matched} of {expected} latent attentions rewritten in them.\n"
    )


def document(rows: Sequence[Row], wanted: int) -> str:
    """The table with what it says in sum; `wanted` are the rows of the whole matrix."""
    ordered = sorted(rows, key=lambda row: (row.is_control, row.labels))
    return f"# Coverage\n\n{textwrap.fill(_prose(ordered, wanted), WIDTH)}\n\n{table(ordered)}"


def _prose(rows: Sequence[Row], wanted: int) -> str:
    controls = [row for row in rows if row.is_control]
    families = [row for row in rows if not row.is_control]
    made = [row for row in families if row.export == "OK"]
    found = sum(row.good for row in made)
    touched = sum(not row.good for row in controls)
    tried = "Every export" if len(rows) >= wanted else f"{len(rows)} of {wanted} exports"
    return (
        f"{tried} of the matrix, by `python -m tests.exports.sweep --write coverage.md`, each"
        " optimized and verified against the original over prompts, chunks and decode steps. Of"
        f" {len(families)} exports of latent attention {len(made)} could be made; in {found} of"
        " them every latent attention was found and the verification passed. The others the"
        f" exporter could not make, with the error it gave, or made so that they do not run. The"
        f" {len(controls)} controls have no latent attention, and {touched or 'none'} of them was"
        " changed. *Max error* is the largest absolute difference of any output, caches included."
    )


def read(text: str) -> list[Row]:
    """The rows of a document that was written before."""
    lines = [each for each in text.splitlines() if each.startswith("| ")]
    return [_row(each) for each in lines if not each.startswith(("| --- ", "| family "))]


def _row(text: str) -> Row:
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
    labels, (export, found, error, why) = tuple(cells[:6]), cells[6:]
    if not found:
        return Row(labels, 0, export)
    matched, expected = map(int, found.split("/"))
    return Row(labels, expected, export, Outcome(matched, float(error) if error else None, why))
