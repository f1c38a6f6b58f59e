"""The operator on the CPU: the compiled core, or PyTorch's own operators where it was not built.

The tasks of a call run on the threads that PyTorch computes with, `torch.get_num_threads()` of
them: those of its OpenMP runtime where that can be reached, else a pool of the library's own.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from mla_opt.errors import InputError
from mla_opt.kernels import core, kernel_available
from mla_opt.operator.contract import OP_TYPE
from mla_opt.operator.torch.call import (
    Call,
    Outputs,
    check_past_len,
    empty_output,
    empty_outputs,
    write_caches,
)
from mla_opt.operator.torch.composite import attend_composite
from mla_opt.operator.torch.cpu_memory import empty_like_cache
from mla_opt.operator.torch.in_place import write_in_place
from mla_opt.operator.torch.problem import make_problem


def attend_cpu(call: Call) -> Outputs:
    """Compute a checked call; the outputs are new tensors.

    Raises:
        InputError: ``past_len`` leaves the buffer, or ``scale`` is no finite number.
    """
    if not kernel_available():
        check_past_len(call)
        return attend_composite(call)
    outputs = empty_outputs(call, empty_like_cache)
    _run(call, outputs)
    return outputs


def attend_cpu_in_place(call: Call) -> torch.Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output.

    Raises:
        InputError: as `attend_cpu`; nothing was written then.
    """
    if not kernel_available():
        outputs = attend_cpu(call)
        write_caches(call, outputs)
        return outputs.output
    return write_in_place(
        call, lambda: empty_output(call), lambda made: _run(call, made), lambda: attend_cpu(call)
    )


def _run(call: Call, outputs: Outputs) -> None:
    if call.query.shape[0] == 0:
        return
    held = make_problem(call, outputs)
    refused = core.run(held.problem, threads())
    if refused:
        raise InputError(f"{OP_TYPE}: {refused}")


def threads() -> core.Threads:
    """Return those that PyTorch computes with."""
    return core.Threads(torch.get_num_threads(), _team())


@functools.cache
def _team() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime that PyTorch itself uses.

    Threads of ours beside its own would find the processors taken: idle OpenMP threads keep
    looking for work for a while, and so does whoever came after a matrix product.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
