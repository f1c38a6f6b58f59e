"""ONNX Runtime sessions with the kernel library, and tensors of every type."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

import mla_opt
from mla_opt.ort_values import from_ort_value, to_ort_value

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def session(
    proto: onnx.ModelProto, *, threads: int = 2, optimized: Path | None = None
) -> ort.InferenceSession:
    """A session in which the kernel stands for the operator."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(runtime: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs."""
    binding = runtime.io_binding()
    for name, feed in feeds.items():
        binding.bind_ortvalue_input(name, to_ort_value(feed))
    for output in runtime.get_outputs():
        binding.bind_output(output.name)
    runtime.run_with_iobinding(binding)
    return [from_ort_value(value) for value in binding.get_outputs()]
