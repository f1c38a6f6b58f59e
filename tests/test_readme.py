"""Every code block of the README and of docs/ runs as it is printed, in the order of its page."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.models import demo_model
from tests.end_to_end.command import PROGRAM, environment
from tests.exports.cache import ROOT
from tests.pages import PAGES, README, Block, blocks, in_checkout

BY_CI_RUN = "`.ci/run` runs it in an environment of its own"
BY_TEST_OLIVE = "tests/integrations/test_olive.py runs it where Olive is installed"
#: Blocks that cannot run here, by page and first line, and why. All others do.
NOT_RUN = {
    ("README.md", "python3.11 -m venv .venv"): BY_CI_RUN,
    ("README.md", "python3.11 -m venv .venv-test"): BY_CI_RUN,
    ("docs/cuda.md", "mla-opt build-kernels --arch 80,90a,120"): "needs nvcc",
    ("docs/olive.md", "pip install 'olive-ai==0.13.*' requests onnxscript"): BY_TEST_OLIVE,
    ("docs/olive.md", "cat > workflow.json <<'END'"): BY_TEST_OLIVE,
    (
        "docs/serving.md",
        "pip install '.[serve]'",
    ): "serves until it is stopped; tests/integrations/run_openai.py asks the example",
    (
        "docs/tensorrt.md",
        "mla-opt build-kernels --arch 90 --tensorrt-headers /usr/include/x86_64-linux-gnu",
    ): "needs nvcc, TensorRT and a GPU",
    (
        "docs/tensorrt.md",
        "from mla_opt.runtimes.tensorrt import generate, load",
    ): "needs TensorRT and a GPU",
    (
        "docs/tensorrt.md",
        "trtexec --onnx=decode.onnx --saveEngine=decode.engine --stronglyTyped"
        " --preview=+aliasedPluginIO1003 \\",
    ): "needs TensorRT; tests/engines/test_trtexec.py looks at it",
    (
        "docs/triton-server.md",
        "mla-opt export engines --to triton-server -o models",
    ): "needs engines, and so a GPU",
}
OF_CHECKOUT = [page for page in PAGES if in_checkout(page)]
ALONE = [page for page in PAGES if page != README and page not in OF_CHECKOUT]


def listed(block: Block) -> bool:
    return (block.page, block.first_line) in NOT_RUN


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if not listed(block)]


def run(wanted: list[Block], folder: Path) -> None:
    """Run them in `folder`, with `mla-opt` and this Python on the path."""
    tools = folder.parent / f"{folder.name}-tools"
    tools.mkdir()
    commands = {"mla-opt": f"{PROGRAM[0]} {PROGRAM[1]} '{PROGRAM[2]}'", "python": sys.executable}
    for name, called in commands.items():
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        script.chmod(0o755)
    (tools / "blocks.json").write_text(json.dumps([dataclasses.asdict(each) for each in wanted]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.pages", str(tools / "blocks.json")],
        cwd=folder,
        env=environment(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_blocks_that_do_not_run_are_on_the_pages() -> None:
    printed = {(block.page, block.first_line) for page in PAGES for block in blocks(page)}
    assert set(NOT_RUN) <= printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_of_a_language_that_runs(page: Path) -> None:
    fences = re.findall(r"^ *```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page)), "a block is indented, or not closed"
    for block in blocks(page):
        assert block.language in ("python", "sh"), f"{page.name}, line {block.line}"


def test_ci_runs_the_blocks_that_are_left_to_it() -> None:
    """It takes the README's first two shell blocks."""
    shell = [block for block in blocks(README) if block.language == "sh"]
    left = [first for (page, first), why in NOT_RUN.items() if why is BY_CI_RUN]
    assert [block.first_line for block in shell[:2]] == left
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"\$\(block (\d)\)", script) == ["1", "2"]


@pytest.mark.long
def test_the_readme_and_pages_that_need_a_checkout(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert OF_CHECKOUT
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run([block for page in (README, *OF_CHECKOUT) for block in runnable(page)], tmp_path)
    assert {"model.onnx", "model.mla.onnx"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("page", [p for p in ALONE if runnable(p)], ids=lambda page: page.name)
def test_other_pages(page: Path, optimized: ir.Model, tmp_path: Path) -> None:
    """Each with a model of one's own and what `mla-opt optimize` makes of it, and nothing else."""
    (tmp_path / "model.onnx").write_bytes(demo_model().read_bytes())
    ir.save(optimized, tmp_path / "model.mla.onnx")
    run(runnable(page), tmp_path)


@pytest.fixture(scope="module")
def optimized() -> ir.Model:
    return mla_opt.optimize(demo_model(), verify=False).model


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert "://" not in link, f"{link}: pages of others are not looked at here; name them"
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
