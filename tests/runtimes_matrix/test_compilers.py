"""IREE and tract compute portable forms as ONNX Runtime does the original.

tract takes models without conditionals: those of one form. IREE 3.13 takes conditionals whose
outputs have a shape; its compiler ends on those that return a packed cache of their own.
"""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

from tests.runtimes_matrix import exchange
from tests.runtimes_matrix.forms import Case

SCRIPT = Path(__file__).with_name("run_compilers.py")
PACKAGES = {
    "iree": ("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0"),
    "tract": ("tract==0.23.9", "numpy"),
}
FORMS = {
    "iree": ("absorbed", "auto", "static", "even absorbed"),
    "tract": ("absorbed", "packed absorbed", "even absorbed", "not absorbed"),
}


@pytest.mark.other_runtimes
@pytest.mark.parametrize("name", PACKAGES)
def test_portable_forms(name: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
    folder = tmp_path / "models"
    folder.mkdir()
    cases = [Case("boolean-17", form) for form in FORMS[name]]
    for case in cases:
        exchange.write(folder, case)
    command = [python, str(SCRIPT), name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for case in cases:
        exchange.check(folder, case)
