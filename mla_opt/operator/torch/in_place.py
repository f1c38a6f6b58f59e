"""Calls that write the caches that they were given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Call, Outputs, empty_output, write_caches


def write_in_place(
    call: Call, run: Callable[[Call, Outputs], None], attend: Callable[[Call], Outputs]
) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output.

    Args:
        call: the call.
        run: computes it into outputs that it is given: here the caches themselves.
        attend: computes it into new tensors, for caches with gaps, which are copied back then.
    """
    assert call.cache is not None
    rope_cache = call.cache if call.rope_cache is None else call.rope_cache
    if not (call.cache.is_contiguous() and rope_cache.is_contiguous()):
        outputs = attend(call)
        write_caches(call, outputs)
        return outputs.output
    output = empty_output(call)
    run(call, Outputs(output, call.cache, rope_cache))
    torch.autograd.graph.increment_version((call.cache, rope_cache))
    return output
