"""The code blocks of the README and of docs/, and a process that runs them in order.

    python -m tests.pages BLOCKS.json

runs a list of blocks, all Python ones in one namespace, in the current folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.exports.cache import ROOT

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
#: A page with these words needs the examples.
CHECKOUT = "in one process, in a checkout"

_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The page, relative to the repository.
        line: The number of its first line of code.
        language: What stands behind the fence.
        code: The code, as printed.
    """

    page: str
    line: int
    language: str
    code: str

    @property
    def first_line(self) -> str:
        return self.code.partition("\n")[0]


def blocks(page: Path) -> list[Block]:
    """All of them, in order."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, found.start(2)) + 1, found[1].strip(), found[2])
        for found in _BLOCK.finditer(text)
    ]


def in_checkout(page: Path) -> bool:
    """Whether its Python blocks import the examples."""
    return CHECKOUT in " ".join(page.read_text().split())


def main(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for each in (Block(**fields) for fields in json.loads(path.read_text())):
        print(f"== {each.page}, line {each.line}", flush=True)
        if each.language == "sh":
            subprocess.run(["bash", "-euc", each.code], check=True)
        else:
            # Tracebacks name the page and its line.
            lines = "\n" * (each.line - 1) + each.code
            exec(compile(lines, str(ROOT / each.page), "exec"), namespace)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
