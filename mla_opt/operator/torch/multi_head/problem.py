"""A call as the struct of the compiled core, with the tensors that it points to."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from mla_opt.kernels import core
from mla_opt.operator.torch import problem as of_attention
from mla_opt.operator.torch.call import Outputs
from mla_opt.operator.torch.multi_head.call import MultiHeadCall
from mla_opt.operator.torch.multi_head.weights import Weights

_CODES = {
    torch.float32: core.FLOAT32,
    torch.float16: core.FLOAT16,
    torch.float64: core.FLOAT64,
    torch.bfloat16: core.BFLOAT16,
    torch.uint8: core.UINT8,
    torch.int8: core.INT8,
    torch.float8_e4m3fn: core.FLOAT8E4M3FN,
    torch.float8_e5m2: core.FLOAT8E5M2,
}


class Held(NamedTuple):
    """A problem, and what must live as long as it does."""

    problem: core.MultiHeadProblem
    tensors: tuple[object, ...]


def make_problem(call: MultiHeadCall, outputs: Outputs) -> Held:
    """Return the struct of a checked call that writes to ``outputs``, which must be dense."""
    inner = of_attention.make_problem(call.attention._replace(query=call.query), outputs)
    inner.problem.rope_dim = call.rope_dim
    dense = call.weights._replace(
        kv_b=call.weights.kv_b.contiguous(),
        kv_b_scales=_dense(call.weights.kv_b_scales),
        kv_b_zero_points=_dense(call.weights.kv_b_zero_points),
        kv_b_factors=_dense(call.weights.kv_b_factors),
    )
    problem = core.MultiHeadProblem()
    problem.struct_size = ctypes.sizeof(core.MultiHeadProblem)
    problem.attention = inner.problem
    problem.kv_b = _kv_b(dense)
    problem.nope_dim, problem.v_dim = call.qk_nope_head_dim, call.v_head_dim
    problem.form = core.FORMS.index(call.form)
    return Held(problem, (*inner.tensors, *dense[:4]))


def _kv_b(weights: Weights) -> core.KvB:
    kv_b = core.KvB()
    kv_b.type, kv_b.codes = _CODES[weights.kv_b.dtype], weights.kv_b.data_ptr()
    kv_b.bits = weights.storage.bits
    kv_b.block_size, kv_b.block_rows = weights.storage.block_size, weights.storage.block_rows
    if weights.kv_b_scales is not None:
        kv_b.scales_type = _CODES[weights.kv_b_scales.dtype]
        kv_b.scales = weights.kv_b_scales.data_ptr()
    if weights.kv_b_zero_points is not None:
        kv_b.zero_points_type = _CODES[weights.kv_b_zero_points.dtype]
        kv_b.zero_points = weights.kv_b_zero_points.data_ptr()
    if weights.kv_b_factors is not None:
        kv_b.factors = weights.kv_b_factors.data_ptr()
    return kv_b


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
