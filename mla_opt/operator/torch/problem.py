"""A call of the operator as the struct of the compiled kernels, with the tensors that it points to.

The struct has the same fields for memory of the CPU and of a GPU. Tensors are handed over as they
lie; only those that are not dense are copied first, and an in-place cache is then copied back.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from mla_opt.kernels import core
from mla_opt.operator.torch.call import Call, Outputs, bias_strides

_TYPES = {
    torch.float32: core.FLOAT32,
    torch.float16: core.FLOAT16,
    torch.float64: core.FLOAT64,
    torch.bfloat16: core.BFLOAT16,
    torch.bool: core.BOOL,
}


# PyTorch gives empty tensors no address, but to the kernels that would say: not given.
_NOWHERE = ctypes.create_string_buffer(64)


class Held(NamedTuple):
    """A problem, and the tensors that must live as long as it does."""

    problem: core.Problem
    tensors: tuple[Tensor | None, ...]


def make_problem(call: Call, outputs: Outputs) -> Held:
    """Return the struct of a checked call that writes to ``outputs``, which must be dense."""
    dense = call._replace(
        query=call.query.contiguous(),
        latent=_dense(call.latent),
        cache=_dense(call.cache),
        past_len=_dense(call.past_len),
        sink=_dense(call.sink),
        rope_cache=_dense(call.rope_cache),
    )
    problem = core.Problem()
    _fill_sizes(problem, dense)
    _fill_inputs(problem, dense)
    _fill_outputs(problem, call, outputs)
    return Held(problem, (*dense[:7], *outputs))


def _fill_sizes(problem: core.Problem, call: Call) -> None:
    problem.struct_size = ctypes.sizeof(core.Problem)
    problem.type = _TYPES[call.query.dtype]
    problem.cache_type = problem.type if call.cache is None else _TYPES[call.cache.dtype]
    problem.causal = call.causal
    problem.batch, problem.heads, problem.query_len, _ = call.query.shape
    problem.new_len, problem.cache_len = call.new_len, call.cache_len
    problem.kv_lora_rank, problem.rope_dim = call.kv_lora_rank, call.rope_dim
    problem.scale = call.scale


def _fill_inputs(problem: core.Problem, call: Call) -> None:
    problem.query = _address(call.query)
    problem.latent = _address(call.latent)
    problem.cache = _address(call.cache)
    problem.past_len = _address(call.past_len)
    problem.sink = _address(call.sink)
    problem.rope_cache = _address(call.rope_cache)
    if call.bias is not None:
        problem.bias_type = _TYPES[call.bias.dtype]
        problem.bias = _address(call.bias)
        problem.bias_strides = bias_strides(call.bias)


def _fill_outputs(problem: core.Problem, call: Call, outputs: Outputs) -> None:
    problem.output = _address(outputs.output)
    if call.writes_cache:
        problem.new_cache = _address(outputs.new_cache)
        if call.rope_cache is not None:
            problem.new_rope_cache = _address(outputs.new_rope_cache)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr() or ctypes.addressof(_NOWHERE)
