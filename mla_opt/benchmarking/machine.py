"""What this machine can do: the arithmetic rate and the read rate that its threads reach."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

Floats = NDArray[np.float32]

REPEATS = 8
#: Edge of the measured product, and megabytes of the array that is read.
SIZE, MEGABYTES = 2048, 512
QUICK_SIZE, QUICK_MEGABYTES = 256, 16


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, by name and by measurement.

    Attributes:
        gemm_gflops: 10^9 fp32 operations per second, as `gemm_by` measured them.
        read_gbps: 10^9 bytes per second read from main memory by all threads together.
    """

    cpu: str
    cores: int
    memory_gb: float
    system: str
    onnxruntime: str
    threads: int
    gemm_gflops: float
    read_gbps: float
    gemm_by: str = ""


def cpu_model() -> str:
    """The CPU's name for itself, with the widest vector unit it reports."""
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split("\t", 1)[0:2] for line in info.splitlines() if "\t" in line)
    name = fields.get("model name", platform.processor()).strip(" \t:")
    family, model = (fields.get(k, "?").strip(" \t:") for k in ("cpu family", "model"))
    vector = "AVX-512" if "avx512f" in info else "AVX2" if "avx2" in info else "SIMD unknown"
    return f"{name} (family {family}, model {model}, {vector})"


def best_seconds(work: Callable[[], object]) -> float:
    """The fastest of several runs, after one that is not counted."""
    work()
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)


def gemm_gflops(size: int, threads: int) -> float:
    """Rate of ONNX Runtime's own square fp32 MatMul: about 90 % of the FMA units."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, size]) for n in "abc"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "g", info[:2], info[2:]
    )
    imports = [helper.make_opsetid("", 21)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: np.ones((size, size), np.float32) for name in "ab"}
    return 2 * size**3 / best_seconds(lambda: session.run(None, feeds)) / 1e9


def read_gbps(megabytes: int, threads: int) -> float:
    """Rate at which the threads together read memory that is in no cache; the best of two ways."""
    parts = np.array_split(np.ones(megabytes << 18, np.float32), threads)
    spent = min(best_seconds(partial(_all, way, parts)) for way in (np.max, _dot))
    return megabytes * 2**20 / spent / 1e9


def _dot(part: Floats) -> object:
    return np.dot(part, part)


def _all(way: Callable[[Floats], object], parts: Sequence[Floats]) -> None:
    readers = [threading.Thread(target=way, args=(part,)) for part in parts]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def measure(threads: int, quick: bool = False) -> Machine:
    """Describe and measure this machine; `quick` measures too little to be quoted."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        memory_gb=round(pages / 2**30, 1),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        onnxruntime=ort.__version__,
        threads=threads,
        gemm_gflops=gemm_gflops(QUICK_SIZE if quick else SIZE, threads),
        read_gbps=read_gbps(QUICK_MEGABYTES if quick else MEGABYTES, threads),
        gemm_by="an fp32 MatMul of ONNX Runtime",
    )
