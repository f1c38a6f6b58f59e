"""Our declarations of ONNX Runtime's C ABI against its own headers, where they are at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mla_opt.kernels.building.build import compiler

VARIABLE = "MLA_OPT_ONNXRUNTIME_HEADERS"
CHECK = Path(__file__).parent / "native" / "check_abi.cpp"


@pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"{VARIABLE} names no folders with onnxruntime_c_api.h (libonnxruntime-dev of Debian)",
)
def test_places_and_fields_are_those_of_the_headers():
    for folder in os.environ[VARIABLE].split(os.pathsep):
        command = [*compiler(), "-std=c++17", "-fsyntax-only", "-I", folder, str(CHECK)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{folder}: {done.stderr}"
