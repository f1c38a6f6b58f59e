"""The site is built, strictly, of the pages and of the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mla_opt.cli._app import app
from mla_opt.matching.axis_rules import RULES
from mla_opt.matching.not_latent import REMEDIES
from mla_opt.passes import BUILT_IN

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MkDocs makes; a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def pages(entries: list[object]) -> set[str]:
    """Files of the navigation."""
    found: set[str] = set()
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found |= pages(value) if isinstance(value, list) else {str(value)}
    return found


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)["nav"]
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= pages(nav)


@pytest.mark.long
def test_the_reference_is_that_of_the_code(site: Path) -> None:
    text = {
        name: (site / "reference" / name / "index.html").read_text()
        for name in ("cli", "api", "passes", "refusals", "operators")
    }
    commands = [command.name for command in app.registered_commands]
    assert len(commands) > 5
    assert all(f"<code>mla-opt {name}</code>" in text["cli"] for name in commands)
    assert all(f"<code>{name}</code>" in text["passes"] for name in BUILT_IN)
    rewriting = text["passes"].count("<details>")
    assert rewriting == 14, "passes that only look change nothing; all others were run"
    assert all(f"<code>{each.__name__}</code>" in text["operators"] for each in RULES)
    assert all(f"<code>{code}</code>" in text["refusals"] for code in REMEDIES)
    assert "<code>activations_quantized</code>" in text["refusals"]
    assert 'id="mla_opt.optimize"' in text["api"]


@pytest.mark.long
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = path.read_text()
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', "@import url(http"):
            assert tag not in page, path
