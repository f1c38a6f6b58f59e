"""The operator on CUDA devices by the compiled library, where `mla-opt build-kernels` made one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mla_opt.kernels.cuda_library import (
    WIDTHS,
    CudaLibrary,
    CudaProblem,
    cuda_kernel_available,
    cuda_kernel_library,
    load_cuda_library,
)
from mla_opt.operator.torch.call import Call, Outputs, empty_output, empty_outputs
from mla_opt.operator.torch.in_place import write_in_place
from mla_opt.operator.torch.problem import make_problem

TYPES = (torch.float16, torch.bfloat16)


def takes(call: Call) -> bool:
    """Whether the library has a kernel for a checked call, and code for its device."""
    widths = (call.kv_lora_rank, call.rope_dim)
    cache = call.query.dtype if call.cache is None else call.cache.dtype
    known = call.query.dtype in TYPES and cache == call.query.dtype and widths in WIDTHS
    return known and cuda_kernel_available() and _has_code_for(call.query.device)


def _library() -> CudaLibrary:
    return load_cuda_library(Path(cuda_kernel_library()).parent)


def _has_code_for(device: torch.device) -> bool:
    """Whether a device runs what was compiled: code is for a minor version and later ones."""
    major, minor = torch.cuda.get_device_capability(device)
    return any(_runs(name, major, minor) for name in _library().architectures)


def _runs(architecture: str, major: int, minor: int) -> bool:
    number = int(architecture.rstrip("af"))
    of_major, of_minor = divmod(number, 10)
    if architecture.endswith("a"):  # for this very architecture
        return (of_major, of_minor) == (major, minor)
    return of_major == major and of_minor <= minor


def attend(call: Call) -> Outputs:
    """Compute a checked call; the outputs are new tensors."""
    outputs = empty_outputs(call)
    _run(call, outputs)
    return outputs


def attend_in_place(call: Call) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    return write_in_place(
        call, lambda: empty_output(call), lambda made: _run(call, made), lambda: attend(call)
    )


def _run(call: Call, outputs: Outputs) -> None:
    """Start a call on the stream that PyTorch is on; nothing waits for it."""
    held = make_problem(call, outputs)
    problem = CudaProblem.from_buffer(held.problem)
    device, library = call.query.device, _library()
    count = torch.cuda.get_device_properties(device).multi_processor_count
    with torch.cuda.device(device):
        size = library.workspace_bytes(problem, count)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        library.launch(problem, count, workspace.data_ptr(), size, stream)
