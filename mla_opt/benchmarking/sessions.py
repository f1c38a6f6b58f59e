"""ONNX Runtime sessions, with and without the kernel library."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from mla_opt.kernels import kernel_library
from mla_opt.verification.onnx.sessions import open_model


def open_session(path: Path, threads: int, kernel: bool) -> ort.InferenceSession:
    """Load a model on the CPU, with ONNX Runtime's defaults but for the number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if kernel:
        options.register_custom_ops_library(str(kernel_library()))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_twin(path: Path, kernel: bool) -> ort.InferenceSession:
    """Load a model with its activations in floating point, to be compared and not to be timed."""
    libraries = (kernel_library(),) if kernel else ()
    return open_model(path, "compared", libraries).twin().session().native
