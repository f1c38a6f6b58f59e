"""The notebook runs from its first cell to its last, and what is printed in it is what it makes."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "examples" / "latent_attention.ipynb"


def printed(cell: dict[str, object]) -> str:
    """What a cell printed, or returned."""
    found = ""
    for output in cell.get("outputs", []):
        found += output.get("text", "") or output.get("data", {}).get("text/plain", "")
    return found


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The notebook, run anew."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    made = nbformat.read(PATH, as_version=4)
    for cell in made.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    folder = tmp_path_factory.mktemp("notebook")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PATH"], before = path, os.environ["PATH"]
    try:
        nbclient.NotebookClient(
            made, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    finally:
        os.environ["PATH"] = before
    return made


@pytest.mark.long
def test_it_tells_what_it_should(notebook: object) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    told = "".join(map(printed, code))
    assert float(told.partition("largest difference:")[2].split()[0]) < 1e-12
    assert told.count("H=40 N=64 R=32 V=64 C=256") == 2
    assert told.count("factored, proved to") == 2
    assert "original {512:" in told
    tokens = ast.literal_eval(printed(code[-1]))
    assert [len(row) for row in tokens] == [8, 8]
    plots = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(plots) == 3


def test_it_was_run_before_it_was_kept() -> None:
    """Who reads it without running it sees results; it stays small enough for git."""
    nbformat = pytest.importorskip("nbformat")
    kept = nbformat.read(PATH, as_version=4)
    assert all(
        cell.outputs for cell in kept.cells if cell.cell_type == "code" and "print" in cell.source
    )
    assert not any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))
    assert PATH.stat().st_size < 500_000
    assert "/tmp" not in PATH.read_text()
