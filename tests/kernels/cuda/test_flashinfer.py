"""FlashInfer as the backend: what its kernel is given, on an emulation of it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mla_opt.kernels.building.cuda_build import build_cuda
from mla_opt.kernels.building.elf import needed_libraries
from mla_opt.kernels.cuda_library import CudaLibrary
from tests.kernels.cuda.conftest import once
from tests.kernels.cuda.emulated import Emulator, build_with_flashinfer
from tests.kernels.cuda.problems import BFLOAT16, Case, check, problem_of

HALF = np.dtype(np.float16)
VARIABLE = "MLA_OPT_FLASHINFER_HEADERS"


@pytest.fixture(scope="module")
def flashinfer(emulator, tmp_path_factory) -> Emulator:
    objects = emulator.library.path.parent
    return Emulator(
        once(tmp_path_factory, "flashinfer", lambda folder: build_with_flashinfer(objects, folder))
    )


@pytest.fixture
def functions(flashinfer) -> ctypes.CDLL:
    return ctypes.CDLL(os.fspath(flashinfer.library.path))


TAKEN = {
    "one sequence": Case(heads=16, past=150),
    "no multiple of a tile": Case(heads=40, past=70, batch=3),
    "many heads": Case(heads=100, past=70, batch=2),
    "float16": Case(heads=16, past=150, dtype=HALF),
    "ragged, in place": Case(heads=16, lengths=(0, 1, 63, 64, 200), causal=True),
    "into another buffer": Case(heads=16, lengths=(0, 100), aliased=False),
    "split cache": Case(heads=16, lengths=(5, 130), split_cache=True, causal=True),
    "split cache, growing": Case(heads=16, past=70, split_cache=True),
    "positions without a mask": Case(heads=16, past=70, query_len=7, batch=2),
    "in place, positions": Case(heads=12, lengths=(3, 90), query_len=6),
    "no cache": Case(heads=16, has_cache=False, query_len=3),
    "no new rows": Case(heads=16, lengths=(0, 90), new_len=0, capacity=100),
    "no new rows, growing": Case(heads=16, past=90, new_len=0),
}
LEFT = {
    "mask among the new rows": Case(heads=16, past=40, query_len=2, causal=True),
    "bias": Case(heads=16, past=40, bias="boolean"),
    "sink": Case(heads=16, past=40, sink=True),
    "512 + 0": Case(heads=16, past=40, rope=0),
    "256 + 32": Case(heads=16, past=40, rank=256, rope=32),
    "negative scale": Case(heads=16, past=40, scale=-0.1),
}


def run(flashinfer, functions, case: Case, blocks: int, planned: int) -> int:
    """Check a case; returns how often FlashInfer was called."""
    functions.mla_opt_flashinfer_blocks(blocks)
    before = functions.mla_opt_flashinfer_calls()
    check(case, *flashinfer.run(case, architecture="90", multiprocessors=planned))
    return functions.mla_opt_flashinfer_calls() - before


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
@pytest.mark.parametrize(("blocks", "planned"), [(1, 1), (9, 30), (30, 9)])
def test_what_it_is_given(flashinfer, functions, case, blocks, planned):
    """With one part of the keys and several, and on fewer multiprocessors than were planned for."""
    assert run(flashinfer, functions, case, blocks, planned) == 1


@pytest.mark.parametrize("case", LEFT.values(), ids=LEFT.keys())
def test_what_is_left_to_our_own_kernels(flashinfer, functions, case):
    assert run(flashinfer, functions, case, 9, 9) == 0


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_many_parts(flashinfer, functions, dtype):
    case = Case(heads=4, lengths=(700, 1), causal=True, dtype=dtype)
    assert run(flashinfer, functions, case, 40, 40) == 1


def test_one_workspace_does_for_smaller_problems(flashinfer, emulator):
    def workspace(library, **sizes):
        case = Case(**sizes)
        shapes = {"query": np.empty((case.batch, case.heads, case.query_len, 576), case.dtype)}
        return library.library.workspace_bytes(
            problem_of(case, shapes, {"output": None}, lambda _: 16), 132
        )

    small, large = ({"heads": 16, "past": 100}, {"heads": 128, "past": 5000, "batch": 64})
    assert workspace(flashinfer, **small) <= workspace(flashinfer, **large)
    assert workspace(flashinfer, **large) >= workspace(emulator, **large)


def headers() -> Path | None:
    """Of FlashInfer: the variable names them, or its package has them, which is not imported."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    package = importlib.util.find_spec("flashinfer")
    places = [] if package is None else list(package.submodule_search_locations or ())
    return next((Path(place) / "data" for place in places), None)


@pytest.mark.skipif(
    headers() is None or shutil.which("nvcc") is None,
    reason=f"needs nvcc and FlashInfer's headers: {VARIABLE}, or flashinfer-python without its"
    " dependencies; .ci/run has both",
)
def test_it_compiles_against_the_headers_of_the_package(tmp_path):
    built = build_cuda(("90a",), tmp_path, flashinfer=headers())
    assert {(one.spilled, one.stack) for one in built.resources} == {(0, 0)}
    assert built.warnings == ()
    theirs = [one for one in built.resources if "flashinfer" in one.kernel]
    assert len(theirs) == 6, "two types, for three sizes of shared memory"
    assert CudaLibrary(built.library).architectures == ("90a",)
    for name in needed_libraries(built.library):
        assert name.split(".so")[0] in ("libc", "libm", "libstdc++", "libgcc_s", "ld-linux-x86-64")
