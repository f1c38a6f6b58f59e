"""What blocks of queries may see, as scaled_dot_product_attention takes it.

Queries that see nothing see everything instead, and are given zeros afterwards: what the softmax of
nothing is differs from backend to backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Call
from mla_opt.operator.torch.composite import last_columns


@dataclass(frozen=True, slots=True)
class Block:
    """Some query rows, and the keys that they see.

    Attributes:
        rows: the queries.
        seen: keys of which the others are behind: nobody sees those.
        mask: additive, or boolean (true = attend); ``[B or 1, H or 1, rows or 1, seen]``.
        blind: true for queries that see nothing, ``[B or 1, H or 1, rows or 1, 1]``.
        is_causal: whether a query sees the keys up to its own place and no others.
    """

    rows: slice
    seen: int
    mask: Tensor | None = None
    blind: Tensor | None = None
    is_causal: bool = False

    def of_heads(self, heads: slice) -> Block:
        """The block for some of the heads."""
        mask, blind = (_of_heads(each, heads) for each in (self.mask, self.blind))
        return Block(self.rows, self.seen, mask, blind, self.is_causal)


def whole(call: Call) -> Block:
    """All queries in one block; no value of a tensor is read."""
    rows, seen = slice(0, call.query.shape[2]), call.total_len
    if _needs_no_mask(call):
        return Block(rows, seen, is_causal=call.causal)
    bias = None if call.bias is None else _columns(call.bias, seen)
    last = last_columns(call)
    allowed = _allowed(bias, last, seen)
    return Block(rows, seen) if allowed is None else _masked(rows, bias, allowed)


def blocks(call: Call, seen: int, size: int) -> Iterator[Block]:
    """Cut the queries of a call, of which ``seen`` rows are valid, into blocks of ``size``.

    Masks and lengths are read for it, so they must lie where that costs nothing: a block's keys end
    with the last one that any of its queries may see.
    """
    if _needs_no_mask(call):
        yield whole(call)
        return
    bias = None if call.bias is None else _columns(call.bias, seen)
    if _is_triangle(call, bias, seen):
        yield Block(slice(0, call.query.shape[2]), seen, is_causal=True)
        return
    last = last_columns(call)
    for start in range(0, call.query.shape[2], size):
        rows = slice(start, min(start + size, call.query.shape[2]))
        yield _shortest(rows, _rows(bias, rows), _rows(last, rows), seen)


def _shortest(rows: slice, bias: Tensor | None, last: Tensor | None, seen: int) -> Block:
    """A block whose keys end where they can, without a mask where it would hide nothing."""
    if last is not None:
        seen = min(seen, max(1, int(last.max()) + 1))
    bias = None if bias is None else bias[..., :seen]
    allowed = _allowed(bias, last, seen)
    if allowed is None:
        return Block(rows, seen)
    used = allowed.flatten(0, 2).any(dim=0).nonzero()
    end = int(used[-1]) + 1 if len(used) else 1
    allowed, bias = allowed[..., :end], None if bias is None else bias[..., :end]
    if (bias is None or bias.dtype == torch.bool) and bool(allowed.all()):
        return Block(rows, end)
    return _masked(rows, bias, allowed)


def _masked(rows: slice, bias: Tensor | None, allowed: Tensor) -> Block:
    blind = ~allowed.any(dim=-1, keepdim=True)
    if bias is None or bias.dtype == torch.bool:
        mask = allowed | blind
    else:
        mask = bias.masked_fill(~allowed, float("-inf")).masked_fill(blind, 0.0)
    return Block(rows, allowed.shape[3], mask, blind)


def _allowed(bias: Tensor | None, last: Tensor | None, seen: int) -> Tensor | None:
    """Return which of ``seen`` keys each query may see; None: all of them."""
    of_bias = None
    if bias is not None:
        of_bias = bias if bias.dtype == torch.bool else bias > float("-inf")
    if last is None:
        return of_bias
    of_last = torch.arange(seen, device=last.device) <= last
    return of_last if of_bias is None else of_bias & of_last


def _needs_no_mask(call: Call) -> bool:
    """Whether all is seen, or what is_causal means, which aligns top left and knows no sink."""
    if call.past_len is not None or call.bias is not None:
        return False
    return not call.causal or (call.sink is None and call.total_len == call.query.shape[2])


def _is_triangle(call: Call, bias: Tensor | None, seen: int) -> bool:
    """Whether a boolean bias is what is_causal means, as masks without padding are."""
    if bias is None or bias.dtype != torch.bool or call.past_len is not None:
        return False
    if call.sink is not None or bias.shape[2:] != (seen, seen):
        return False
    triangle = torch.ones(seen, seen, dtype=torch.bool, device=bias.device).tril()
    return bool((bias == triangle).all())


def _columns(bias: Tensor, seen: int) -> Tensor:
    """A bias of four axes, with a column for each of the first ``seen`` rows."""
    bias = bias[(None,) * (4 - bias.dim())]
    wide = bias.expand(*bias.shape[:3], seen) if bias.shape[3] == 1 else bias
    return wide[..., :seen]


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, rows]


def _of_heads(tensor: Tensor | None, heads: slice) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]
