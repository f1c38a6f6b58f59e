"""What our kernels tell wgmma, against CUTLASS's own layouts, where its headers are at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mla_opt.kernels.building.build import compiler
from tests.kernels.cuda.emulated import NATIVE

VARIABLE = "MLA_OPT_CUTLASS_HEADERS"
CHECK = Path(__file__).parent / "checks" / "check_cutlass.cpp"


@pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"{VARIABLE} names no folders with cute/tensor.hpp and CUDA's headers (nvidia-cutlass"
    " of PyPI has the former)",
)
def test_descriptors_places_and_fragments_are_those_of_cutlass(tmp_path):
    folders = os.environ[VARIABLE].split(os.pathsep)
    options = ["-std=c++17", "-O1", "-w", *(f"-I{folder}" for folder in (*folders, NATIVE))]
    program = tmp_path / "check"
    sources = [CHECK, *(NATIVE / f"{name}.cpp" for name in ("emulator", "bulk_copies"))]
    command = [*compiler(), *options, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("0 differences\n"), done.stdout
