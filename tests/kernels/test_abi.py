"""Our declarations of ONNX Runtime's C ABI against its own headers, where they are at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mla_opt.kernels.building.build import compiler

VARIABLE = "MLA_OPT_ONNXRUNTIME_HEADERS"
#: Where libonnxruntime-dev of Debian puts them.
INSTALLED = Path("/usr/include/onnxruntime")
CHECK = Path(__file__).parent / "native" / "check_abi.cpp"


def header_folders(name: str = "onnxruntime_c_api.h") -> list[str]:
    """Folders with ONNX Runtime's headers: those that are named, else where a package has them."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [folder for folder in [*named, str(INSTALLED)] if folder and Path(folder, name).exists()]


@pytest.mark.skipif(
    not header_folders(),
    reason=f"{VARIABLE} names no folders with onnxruntime_c_api.h (libonnxruntime-dev of Debian)",
)
def test_places_and_fields_are_those_of_the_headers():
    for folder in header_folders():
        command = [*compiler(), "-std=c++17", "-fsyntax-only", "-I", folder, str(CHECK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{folder}: {done.stderr}"
