"""Environments with packages from PyPI that this project does not need."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

from tests.exports.cache import ROOT


def installed(folder: Path, *packages: str, deps: bool = True) -> Path:
    """Make an environment with ``packages`` on top of what the tests run in; returns its Python.

    mla_opt is imported from the checkout, and what is here already is not installed again.
    """
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    below = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)]
    (site / "below.pth").write_text("\n".join(dict.fromkeys(below)) + "\n")
    python = folder / "bin" / "python"
    options = ["-q", *([] if deps else ["--no-deps"])]
    subprocess.run([python, "-m", "pip", "install", *options, *packages], check=True)
    return python
