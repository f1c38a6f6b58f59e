"""The operator on the CPU: the compiled core, or PyTorch's own operators where it was not built.

The core chooses the form by its own rates; without it, the one of fewer products is taken.
"""

from __future__ import annotations

from torch import Tensor

from mla_opt.errors import InputError
from mla_opt.kernels import core, kernel_available
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE
from mla_opt.operator.torch.call import Outputs, check_past_len, write_caches
from mla_opt.operator.torch.composite import attend_composite
from mla_opt.operator.torch.cpu import threads
from mla_opt.operator.torch.cpu_memory import empty_like_cache
from mla_opt.operator.torch.in_place import write_in_place
from mla_opt.operator.torch.multi_head.absorbed import attend_absorbed
from mla_opt.operator.torch.multi_head.call import (
    MultiHeadCall,
    empty_output,
    empty_outputs,
    renamed,
)
from mla_opt.operator.torch.multi_head.choice import expands
from mla_opt.operator.torch.multi_head.expanded import attend_expanded_by_blocks, rows_seen
from mla_opt.operator.torch.multi_head.problem import make_problem


def attend_cpu(call: MultiHeadCall) -> Outputs:
    """Compute a checked call; the outputs are new tensors.

    Raises:
        InputError: ``past_len`` leaves the buffer, or ``scale`` is no finite number.
    """
    if not kernel_available():
        return _attend_by_aten(call)
    outputs = empty_outputs(call, empty_like_cache)
    _run(call, outputs)
    return outputs


def attend_cpu_in_place(call: MultiHeadCall) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output.

    Raises:
        InputError: as `attend_cpu`; nothing was written then.
    """
    attention = call.attention
    if not kernel_available():
        outputs = _attend_by_aten(call)
        write_caches(attention, outputs)
        return outputs.output
    return write_in_place(
        attention,
        lambda: empty_output(call),
        lambda made: _run(call, made),
        lambda: attend_cpu(call),
    )


def _attend_by_aten(call: MultiHeadCall) -> Outputs:
    _check_lengths(call)
    if expands(call, rows_seen(call)):
        return attend_expanded_by_blocks(call)
    return attend_absorbed(call, attend_composite)


def _check_lengths(call: MultiHeadCall) -> None:
    """Refuse lengths that leave the buffer.

    Raises:
        InputError: a sequence has fewer than 0 rows, or no room for the new ones.
    """
    try:
        check_past_len(call.attention)
    except InputError as error:
        raise renamed(error) from None


def _run(call: MultiHeadCall, outputs: Outputs) -> None:
    if call.query.shape[0] == 0:
        return
    held = make_problem(call, outputs)
    refused = core.run(held.problem, threads())
    if refused:
        raise InputError(f"{MULTI_HEAD_OP_TYPE}: {refused}")
