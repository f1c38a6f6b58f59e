"""The operator on CUDA and other devices: prompts by PyTorch's own attention, steps absorbed.

    steps, short chunks     LatentAttention's kernels, between the two products of each head
    prompts                 keys and values of all heads, and scaled_dot_product_attention

How full a buffer is lies on the device, where nobody waits for it: a call on one is expanded, all
of its rows, only where that takes fewer products than attending to the new rows alone.
"""

from __future__ import annotations

from torch import Tensor

from mla_opt.operator.torch.call import Outputs
from mla_opt.operator.torch.composite import attend_composite, attend_composite_in_place
from mla_opt.operator.torch.cuda import attend_cuda as attend_latent_cuda
from mla_opt.operator.torch.cuda import attend_cuda_in_place as attend_latent_cuda_in_place
from mla_opt.operator.torch.multi_head.absorbed import attend_absorbed, attend_absorbed_in_place
from mla_opt.operator.torch.multi_head.call import MultiHeadCall
from mla_opt.operator.torch.multi_head.choice import expands
from mla_opt.operator.torch.multi_head.expanded import attend_expanded, attend_expanded_in_place


def attend_cuda(call: MultiHeadCall) -> Outputs:
    """Compute a checked call; the outputs are new tensors."""
    if _expands(call):
        return attend_expanded(call)
    return attend_absorbed(call, attend_latent_cuda)


def attend_cuda_in_place(call: MultiHeadCall) -> Tensor:
    """Compute a checked call that has ``past_len``, write its caches, and return the output."""
    if _expands(call):
        return attend_expanded_in_place(call)
    return attend_absorbed_in_place(call, attend_latent_cuda_in_place)


def attend_anywhere(call: MultiHeadCall) -> Outputs:
    """Compute a checked call by PyTorch's own operators; the outputs are new tensors."""
    if _expands(call):
        return attend_expanded(call)
    return attend_absorbed(call, attend_composite)


def attend_anywhere_in_place(call: MultiHeadCall) -> Tensor:
    """The same of a call that has ``past_len``: write its caches, and return the output."""
    if _expands(call):
        return attend_expanded_in_place(call)
    return attend_absorbed_in_place(call, attend_composite_in_place)


def _expands(call: MultiHeadCall) -> bool:
    attention = call.attention
    least = None if attention.past_len is None else max(1, attention.new_len)
    return expands(call, attention.total_len, least)
