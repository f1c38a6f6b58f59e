"""The CUDA kernels, compiled for an emulation of a GPU, on arrays of NumPy."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mla_opt.kernels.building.build import HOME, compiler
from mla_opt.kernels.cuda_library import CudaLibrary, CudaProblem
from tests.kernels.cuda.problems import Arrays, Case, expected, operands, problem_of, results

NATIVE = Path(__file__).parent / "native"
FLASHINFER = Path(__file__).parent / "flashinfer"
SOURCES = [
    *sorted((HOME / "cuda").glob("*.cpp")),
    *(HOME / "onnxruntime" / f"{name}.cpp" for name in ("node", "operands")),
    HOME / "onnxruntime_cuda" / "cuda_operators.cpp",
    *sorted(NATIVE.glob("*.cpp")),
]
OPTIONS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# As in native/emulator.h.
SABOTAGE = (
    "nothing",
    "block barrier",
    "group barrier",
    "wait",
    "show",
    "phase",
    "expect",
    "show barriers",
)
PLAN = ("rows", "keys", "stages", "warps", "row_tiles", "splits", "blocks", "shared", "workspace")


def build(folder: Path) -> Path:
    """Compile everything but what is in .cu files, with the emulated machine instead."""
    flags = [*OPTIONS, f"-I{NATIVE}", '-DMLA_OPT_CUDA_ARCHITECTURES="emulated"']

    def compiled(source: Path) -> str:
        result = folder / f"{source.stem}.o"
        run([*compiler(), *flags, "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    library = folder / "libmla_opt_cuda_emulated.so"
    run([*compiler(), "-shared", "-o", str(library), *objects])
    return library


def build_with_flashinfer(objects: Path, folder: Path) -> Path:
    """The same with FlashInfer chosen, of what `build` left in ``objects``, and an emulation of its
    kernel."""
    own = [HOME / "cuda" / "launch.cpp", HOME / "flashinfer" / "work.cpp"]
    for source in [*own, FLASHINFER / "flashinfer_emulated.cpp"]:
        flags = [*OPTIONS, f"-I{NATIVE}", "-DMLA_OPT_WITH_FLASHINFER"]
        flags += ['-DMLA_OPT_CUDA_ARCHITECTURES="emulated"']
        run([*compiler(), *flags, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
    others = [str(path) for path in objects.glob("*.o") if path.stem != "launch"]
    library = folder / "libmla_opt_cuda_flashinfer.so"
    own_objects = [str(path) for path in folder.glob("*.o")]
    run([*compiler(), "-shared", "-o", str(library), *own_objects, *others])
    return library


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


class Emulator:
    """A machine of some architecture that runs problems."""

    def __init__(self, path: Path) -> None:
        self.library = CudaLibrary(path)
        self._extra = ctypes.CDLL(os.fspath(path))
        self._extra.mla_opt_boxes_landed.restype = ctypes.c_int64

    def become(self, architecture: str, seed: int) -> None:
        """Be this architecture from now on; ``seed`` starts the order in which things happen."""
        self._extra.mla_opt_emulate(*_device(architecture), ctypes.c_uint64(seed))

    @contextlib.contextmanager
    def broken(self, what: str) -> Iterator[None]:
        """Something of the machine does not work inside."""
        self._extra.mla_opt_sabotage(SABOTAGE.index(what))
        try:
            yield
        finally:
            self._extra.mla_opt_sabotage(0)

    @contextlib.contextmanager
    def without_tensor_maps(self) -> Iterator[None]:
        """Nothing can be described to TMA inside."""
        self._extra.mla_opt_take_tensor_maps(0)
        try:
            yield
        finally:
            self._extra.mla_opt_take_tensor_maps(1)

    def boxes(self) -> int:
        """How many TMA has copied so far."""
        return int(self._extra.mla_opt_boxes_landed())

    def plan(self, problem: CudaProblem, architecture: str, multiprocessors: int) -> dict[str, int]:
        numbers = (ctypes.c_int64 * len(PLAN))()
        self._extra.mla_opt_plan(
            ctypes.byref(problem),
            *_device(architecture),
            ctypes.c_int(multiprocessors),
            numbers,
        )
        return dict(zip(PLAN, numbers))

    def launch(self, problem: CudaProblem, multiprocessors: int) -> None:
        size = self.library.workspace_bytes(problem, multiprocessors)
        workspace = guarded(np.full(size // 4, np.nan, np.float32))
        self.library.launch(problem, multiprocessors, address(workspace), size, 0)

    def run(
        self, case: Case, *, architecture: str = "80", multiprocessors: int = 1, seed: int = 0
    ) -> tuple[Arrays, Arrays]:
        """Return what must come out, and what does."""
        arrays = {name: guarded(array) for name, array in operands(case).items()}
        wanted = expected(case, arrays)
        made = {
            name: array if array is arrays.get(name.removeprefix("new_")) else guarded(array)
            for name, array in results(case, arrays, wanted).items()
        }
        self.become(architecture, seed)
        self.launch(problem_of(case, arrays, made, address), multiprocessors)
        return wanted, made


def _device(architecture: str) -> tuple[ctypes.c_int, ctypes.c_int]:
    """The number, and whether code for it may use the products of warpgroups."""
    return ctypes.c_int(int(architecture.rstrip("a"))), ctypes.c_int(architecture == "90a")


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy that ends where a page starts that nobody may touch."""
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy
