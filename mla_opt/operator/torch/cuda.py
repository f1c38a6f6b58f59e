"""The operator on CUDA devices: the first kernel that is there and takes the call.

    the compiled library                where `mla-opt build-kernels` made it, for what it has
    Triton                              where it is installed, as PyTorch's CUDA builds have it
    PyTorch's own operators             for everything else, float64 among it

``past_len`` lies on the device, where nobody waits for it to check it: the kernels write no row
outside the buffer and read none, whatever the lengths are. Nothing waits for the device, so
calls can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mla_opt.operator.torch import cuda_library as torch_cuda_library
from mla_opt.operator.torch.call import Call, Outputs
from mla_opt.operator.torch.composite import attend_composite, attend_composite_in_place


class CudaKernel(NamedTuple):
    """An implementation: which calls it takes, and both forms of the operator."""

    takes: Callable[[Call], bool]
    attend: Callable[[Call], Outputs]
    attend_in_place: Callable[[Call], Tensor]


def attend_cuda(call: Call) -> Outputs:
    """Compute a checked call; the outputs are new tensors."""
    return _choose(call).attend(call)


def attend_cuda_in_place(call: Call) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    return _choose(call).attend_in_place(call)


def _choose(call: Call) -> CudaKernel:
    return next(kernel for kernel in _kernels() if kernel.takes(call))


@functools.cache
def _kernels() -> tuple[CudaKernel, ...]:
    """Return what is there, best first; the last one takes every call."""
    composite = CudaKernel(lambda call: True, attend_composite, attend_composite_in_place)
    found = [_compiled(), _triton(), composite]
    return tuple(kernel for kernel in found if kernel is not None)


def _compiled() -> CudaKernel:
    return CudaKernel(
        torch_cuda_library.takes, torch_cuda_library.attend, torch_cuda_library.attend_in_place
    )


def _triton() -> CudaKernel | None:
    try:
        from mla_opt.operator.torch import triton_launch as launch
    except ImportError:
        return None
    return CudaKernel(launch.takes, launch.attend, launch.attend_in_place)
