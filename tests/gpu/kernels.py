"""The library that is tested, and problems run with it on a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from mla_opt.kernels.building.cuda_build import build_cuda
from mla_opt.kernels.cuda_library import (
    CudaLibrary,
    CudaProblem,
    cuda_kernel_available,
    cuda_kernel_folder,
    load_cuda_library,
)
from tests.gpu.driver import Device, Memory
from tests.gpu.oracle import expected
from tests.kernels.cuda.problems import Arrays, Case, operands, problem_of, results

GUARD = 256


def library_for(device: Device, architecture: str | None = None) -> CudaLibrary:
    """The library that was built or carried along; else one made here, for this device.

    ``architecture`` asks for one made here: on Hopper, 90 is what all devices have, 90a its own.
    """
    if architecture is None and cuda_kernel_available():
        return load_cuda_library(cuda_kernel_folder())
    name = architecture or ("90a" if device.architecture == "90" else device.architecture)
    return CudaLibrary(build_cuda((name,), Path(tempfile.mkdtemp(prefix="mla-opt-"))).library)


class Runner:
    """Runs problems on the device, with guards around everything that is written."""

    def __init__(self, device: Device, library: CudaLibrary) -> None:
        self.device = device
        self.library = library

    def run(
        self, case: Case, *, multiprocessors: int | None = None, stream: int = 0
    ) -> tuple[Arrays, Arrays]:
        """Return what must come out, and what does."""
        arrays = operands(case)
        wanted = expected(case, arrays)
        made = results(case, arrays, wanted)
        on_device: dict[int, Memory] = {}
        for array in [*arrays.values(), *made.values()]:
            if id(array) not in on_device:
                on_device[id(array)] = self._guarded(array)
        problem = problem_of(case, arrays, made, lambda a: on_device[id(a)].address + GUARD)
        self.launch(problem, multiprocessors, stream)
        self.device.synchronize()
        return wanted, {
            name: self._checked(name, on_device[id(array)], array) for name, array in made.items()
        }

    def launch(
        self, problem: CudaProblem, multiprocessors: int | None = None, stream: int = 0
    ) -> None:
        """Start a problem and wait for it, with a workspace of numbers that are none."""
        count = multiprocessors or self.device.multiprocessors
        size = self.library.workspace_bytes(problem, count)
        workspace = self.device.upload(np.full(size // 4, np.nan, np.float32))
        self.library.launch(problem, count, workspace.address, size, stream)
        self.device.synchronize()

    def _guarded(self, array: np.ndarray) -> Memory:
        guard = np.full(GUARD, 0xA5, np.uint8)
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return self.device.upload(np.concatenate([guard, data, guard]))

    def _checked(self, name: str, memory: Memory, like: np.ndarray) -> np.ndarray:
        held = self.device.download(memory, np.empty(memory.size, np.uint8))
        ends = np.concatenate([held[:GUARD], held[-GUARD:]])
        assert (ends == 0xA5).all(), f"something was written beyond {name}"
        return held[GUARD:-GUARD].copy().view(like.dtype).reshape(like.shape)
