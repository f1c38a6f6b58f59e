"""The model that comes along: two layers of a DeepSeek-V3 with random weights, for the demo.

It is a real export, made by ``tests/exports/make_demo_model.py`` in the repository.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mla_opt.errors import InputError

DEMO = "demo.onnx"


def demo_model() -> Path:
    """Return the path of the demo model in this installation.

    Raises:
        InputError: it is not there.
    """
    path = Path(str(resources.files(__name__) / DEMO))
    if not path.is_file():
        raise InputError(f"{DEMO} is missing from this installation; install mla-opt again")
    return path
