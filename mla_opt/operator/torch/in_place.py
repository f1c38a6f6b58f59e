"""Calls that write the caches that they were given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Call, Outputs, write_caches


def write_in_place(
    call: Call,
    output: Callable[[], Tensor],
    run: Callable[[Outputs], None],
    attend: Callable[[], Outputs],
) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output.

    Args:
        call: the call, for its caches.
        output: makes an uninitialised tensor for the output.
        run: computes it into outputs that it is given: here the caches themselves.
        attend: computes it into new tensors, for caches with gaps, which are copied back then.
    """
    assert call.cache is not None
    rope_cache = call.cache if call.rope_cache is None else call.rope_cache
    if not (call.cache.is_contiguous() and rope_cache.is_contiguous()):
        outputs = attend()
        write_caches(call, outputs)
        return outputs.output
    made = output()
    run(Outputs(made, call.cache, rope_cache))
    torch.autograd.graph.increment_version((call.cache, rope_cache))
    return made
