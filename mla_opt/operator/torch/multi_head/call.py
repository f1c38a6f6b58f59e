"""One call of the operator that holds its weights: its operands, checked.

Without its weights it is a call of ``LatentAttention``, whose query stands for the absorbed one: it
has its shape, and nobody reads its numbers.
"""

from __future__ import annotations

from typing import NamedTuple, cast, get_args

from torch import Tensor

from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, Form
from mla_opt.operator.torch.call import Call, EmptyCache, Outputs, check
from mla_opt.operator.torch.call import empty_outputs as empty_outputs_of_attention
from mla_opt.operator.torch.demands import check_rank, demand, refuse
from mla_opt.operator.torch.multi_head.weights import Weights, check_weights, make_weights


class MultiHeadCall(NamedTuple):
    """Operands and attributes, as the contract has them.

    ``query`` is ``[B, H, S, N+R]``; ``attention`` is the ``LatentAttention`` in between.
    """

    query: Tensor
    weights: Weights
    attention: Call
    qk_nope_head_dim: int
    v_head_dim: int
    form: Form

    @property
    def kv_lora_rank(self) -> int:
        """C."""
        return self.attention.kv_lora_rank

    @property
    def rope_dim(self) -> int:
        """R: width of the rotary part."""
        return self.query.shape[3] - self.qk_nope_head_dim


def make_multi_head_call(
    query: Tensor,
    kv_b: Tensor,
    latent: Tensor | None = None,
    cache: Tensor | None = None,
    past_len: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    rope_cache: Tensor | None = None,
    kv_b_scales: Tensor | None = None,
    kv_b_zero_points: Tensor | None = None,
    kv_b_factors: Tensor | None = None,
    *,
    scale: float,
    kv_lora_rank: int,
    qk_nope_head_dim: int,
    v_head_dim: int,
    causal: bool = False,
    bits: int = 0,
    block_size: int = 0,
    block_rows: int = 1,
    form: str = "auto",
) -> MultiHeadCall:
    """Return a call, checked.

    Raises:
        InputError: the contract does not allow it.
    """
    try:
        _check_query(query, qk_nope_head_dim, v_head_dim, kv_lora_rank)
        _check_form(form)
        stand_in = _of_width(query, kv_lora_rank + query.shape[3] - qk_nope_head_dim)
        operands = (stand_in, latent, cache, past_len, bias, sink, rope_cache)
        attention = Call(*operands, scale, kv_lora_rank, causal)
        check(attention)
        stored = (kv_b, kv_b_scales, kv_b_zero_points, kv_b_factors)
        weights = make_weights(*stored, bits=bits, block_size=block_size, block_rows=block_rows)
        check_weights(weights, query, qk_nope_head_dim + v_head_dim, kv_lora_rank)
    except InputError as error:  # said of the operator in between, or of none
        raise renamed(error) from None
    dims = (qk_nope_head_dim, v_head_dim)
    return MultiHeadCall(query, weights, attention, *dims, cast(Form, form))


def empty_outputs(call: MultiHeadCall, empty: EmptyCache = Tensor.new_empty) -> Outputs:
    """Return uninitialised tensors for the outputs of a checked call, its caches by ``empty``."""
    of_attention = empty_outputs_of_attention(_without_output(call), empty)
    return of_attention._replace(output=empty_output(call))


def empty_output(call: MultiHeadCall) -> Tensor:
    """Return an uninitialised tensor for the first of them, ``[B, H, S, V]``."""
    return call.query.new_empty((*call.query.shape[:3], call.v_head_dim))


def _without_output(call: MultiHeadCall) -> Call:
    """The call in between with no query rows, whose output takes no memory."""
    return call.attention._replace(query=call.attention.query[:, :, :0])


def _of_width(query: Tensor, width: int) -> Tensor:
    """A view of any numbers, as wide as the absorbed query."""
    return query[..., :1].expand(-1, -1, -1, width)


def _check_query(query: Tensor, nope: int, value: int, rank: int) -> None:
    check_rank("query", query, 4)
    width = query.shape[3]
    demand(rank >= 1, lambda: f"kv_lora_rank is {rank}, at least 1 is needed")
    demand(nope >= 0, lambda: f"qk_nope_head_dim is {nope}, at least 0 is needed")
    demand(nope <= width, lambda: f"qk_nope_head_dim is {nope}, but query has width {width}")
    demand(width >= 1, lambda: "query has width 0, at least 1 is needed")
    demand(value >= 1, lambda: f"v_head_dim is {value}, at least 1 is needed")


def _check_form(form: str) -> None:
    if form not in get_args(Form):
        refuse(f"form is {form!r}, not one of {', '.join(get_args(Form))}")


def renamed(error: InputError) -> InputError:
    """What is wrong with the attention in between, or the weights, said of this operator."""
    said = (
        str(error)
        .removeprefix(f"{OP_TYPE}: ")
        .replace("0 dims beyond kv_lora_rank", "0 dims beyond qk_nope_head_dim")
    )
    return InputError(f"{MULTI_HEAD_OP_TYPE}: {said}")
