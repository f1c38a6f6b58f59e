"""The example that serves OpenAI's API, asked by OpenAI's own client; 64 requests at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.exports.cache import ROOT

PACKAGES = ("openai==3.57.0", "fastapi==0.165.0", "uvicorn==0.54.0")


@pytest.mark.other_runtimes
def test_each_request_hears_what_its_prompt_says_alone(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path)]
    subprocess.run([*install, *PACKAGES], check=True)
    script = Path(__file__).parent / "run_openai.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
