"""Rows of the coverage table, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
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
