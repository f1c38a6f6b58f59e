"""ONNX Runtime sessions, with and without the kernel library."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnxruntime as ort


def open_session(path: Path, threads: int, kernel: bool) -> ort.InferenceSession:
    """Load a model on the CPU, with ONNX Runtime's defaults but for the number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if kernel:
        library = kernel_library()
        assert library is not None
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kernel_library() -> Path | None:
    """Where the kernel library is; `None` where this installation was made without it."""
    kernels = importlib.import_module("mla_opt.kernels")
    available = getattr(kernels, "kernel_available", None)
    if available is None or not available():
        return None
    return Path(kernels.kernel_library())
