"""A tensor-parallel attention on processes that talk by gloo; what test_sharding runs.

python -m torch.distributed.run --standalone --nproc-per-node N -m tests.torch_operator.sharded
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mla_opt
from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.multi_head import MultiHeadSignature
from tests.operator.cases import RANK, ROPE, operands
from tests.operator.multi_head_cases import SMALL, SMALL_STORAGES, factors, weights
from tests.torch_operator import multi_head_calls
from tests.torch_operator.calls import IN_PLACE, OPERATOR, assert_matches, attributes, positional

HIDDEN, HEADS, WIDTH = 32, 8, RANK + ROPE
BATCH, NEW, PAST = 4, 3, 5


class Attention(nn.Module):
    """What an absorbed model's attention comes to, with a sink."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * WIDTH)
        self.kv_proj = nn.Linear(HIDDEN, WIDTH)
        self.o_proj = nn.Linear(HEADS * RANK, HIDDEN)
        self.sink = nn.Parameter(torch.randn(HEADS))

    def forward(self, hidden, cache, bias):
        query = self.q_proj(hidden).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        latent = self.kv_proj(hidden).unsqueeze(1)
        output, new_cache, _ = OPERATOR(
            query, latent, cache, None, bias, self.sink, scale=0.3, kv_lora_rank=RANK, causal=True
        )
        return self.o_proj(output.transpose(1, 2).flatten(2)), new_cache


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def tensor_parallel(mesh) -> Attention:
    """The model as PyTorch's own styles split it; what they do not name is on every process."""
    torch.manual_seed(0)
    model = Attention().requires_grad_(False)
    parallelize_module(
        model,
        mesh,
        {
            "q_proj": ColwiseParallel(use_local_output=False),
            "o_proj": RowwiseParallel(use_local_output=False),
        },
    )
    distribute_module(model.kv_proj, mesh)
    model.sink = nn.Parameter(distribute_tensor(model.sink, mesh, [Shard(0)]), requires_grad=False)
    return model


def a_model_has_the_numbers_of_the_whole(mesh, bias_shape) -> None:
    torch.manual_seed(0)
    single = Attention().requires_grad_(False)
    split = tensor_parallel(mesh)
    torch.manual_seed(1)
    cache = torch.randn(BATCH, 1, PAST, WIDTH)
    shared = distribute_tensor(cache, mesh, [Replicate()])
    for new in (NEW, 1, 1):
        hidden = torch.randn(BATCH, new, HIDDEN)
        bias = torch.randn(*bias_shape, new, cache.shape[2] + new)
        wanted, cache = single(hidden, cache, bias)
        given = (distribute_tensor(value, mesh, [Replicate()]) for value in (hidden, bias))
        hidden, bias = given
        with CommDebugMode() as talk:
            got, shared = split(hidden, shared, bias)
        assert shared.placements == (Replicate(),)
        torch.testing.assert_close(whole(got), wanted)
        torch.testing.assert_close(whole(shared), cache)
        # The sum behind o_proj is all that is said.
        counts = {str(kind): count for kind, count in talk.get_comm_counts().items()}
        assert counts == {"c10d_functional.all_reduce": 1}, counts


def every_operand_is_cut(mesh, axis: int) -> None:
    """By heads (axis 1) or sequences (axis 0), from whole tensors and from those cut already."""
    signature = Signature(
        has_cache=True, in_place=True, split=True, bias="additive", sink=True, causal=True
    )
    feeds = many(signature)
    given = positional(feeds)
    spread = [distribute_tensor(value, mesh, [Replicate()]) for value in given]
    spread[0] = distribute_tensor(given[0], mesh, [Shard(axis)])
    outputs = OPERATOR(*spread, **attributes(signature))
    assert outputs[0].placements == (Shard(axis),)
    assert_matches([whole(value) for value in outputs], signature, feeds)


def weights_are_cut_with_their_heads(mesh, axis: int) -> None:
    """Of the operator that holds its weights: queries cut by heads ask for the rows of those."""
    attention = Signature(has_cache=True, bias="additive", sink=True, causal=True)
    how, *types = SMALL_STORAGES["packed4_zeros"]
    signature = MultiHeadSignature(attention, how, "expanded", factors=True)
    geometry = replace(SMALL, num_heads=HEADS)
    feeds = many(attention)
    width = feeds["query"].shape[3]
    feeds["query"] = feeds["query"][..., width - geometry.qk_head_dim :]
    feeds |= weights(how, *types, geometry) | factors(geometry)
    given = multi_head_calls.positional(feeds)
    spread = [None if x is None else distribute_tensor(x, mesh, [Replicate()]) for x in given]
    spread[0] = distribute_tensor(given[0], mesh, [Shard(axis)])
    options = multi_head_calls.attributes(signature, geometry)
    outputs = multi_head_calls.OPERATOR(*spread, **options)
    assert outputs[0].placements == (Shard(axis),)
    made = [whole(value) for value in outputs]
    multi_head_calls.assert_matches(made, signature, feeds, geometry=geometry)


def many(signature):
    """The contract's case with as many sequences and heads as any mesh here divides."""
    feeds = operands(signature, query_len=NEW)
    heads = {"query": 1, "sink": 0}
    for key, value in feeds.items():
        repeated = value[[0, 1, 2, 1]] if key != "sink" else value
        if key in heads:
            repeated = repeated.repeat(4, axis=heads[key])
        feeds[key] = repeated
    return feeds


def the_in_place_form_is_refused(mesh) -> None:
    signature = Signature(has_cache=True, in_place=True)
    given = positional(many(signature))
    spread = [None if x is None else distribute_tensor(x, mesh, [Replicate()]) for x in given]
    with pytest.raises(Exception, match="takes no DTensor") as caught:
        IN_PLACE(*spread, **attributes(signature))
    assert isinstance(caught.value, (InputError, RuntimeError))


def main() -> None:
    dist.init_process_group("gloo")
    mla_opt.register_sharding()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.no_grad():
        for bias_shape in ((), (BATCH, 1), (1, HEADS), (HEADS,)):
            a_model_has_the_numbers_of_the_whole(mesh, bias_shape)
        for axis in (0, 1):
            every_operand_is_cut(mesh, axis)
            weights_are_cut_with_their_heads(mesh, axis)
        the_in_place_form_is_refused(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
