"""What a block of queries may see, for attention that goes by blocks on the CPU.

There, reading a mask costs little beside the products that it saves: a block's keys end with the
last one that any of its queries may see.
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
        seen: keys that any of them may see, all others being behind those.
        bias: additive, ``[B or 1, H or 1, rows or 1, seen]``.
        hidden: true where a query does not see one of the last keys of ``seen``, as many as there
            are columns here.
        blind: true for queries that see nothing, ``[B or 1, H or 1, rows or 1, 1]``.
    """

    rows: slice
    seen: int
    bias: Tensor | None = None
    hidden: Tensor | None = None
    blind: Tensor | None = None

    def of_heads(self, heads: slice) -> Block:
        """The block for some of the heads."""
        return Block(
            self.rows,
            self.seen,
            _of_heads(self.bias, heads),
            _of_heads(self.hidden, heads),
            _of_heads(self.blind, heads),
        )

    def apply(self, scores: Tensor) -> None:
        """Let the scores ``[B, H, rows, seen]`` be those of what is seen, in place."""
        if self.bias is not None:
            scores.add_(self.bias)
        if self.hidden is not None:
            scores[..., -self.hidden.shape[3] :].masked_fill_(self.hidden, float("-inf"))


def blocks(call: Call, seen: int, size: int) -> Iterator[Block]:
    """Cut the queries of a call, whose rows end with row ``seen``, into blocks of ``size``."""
    bias = None if call.bias is None else _columns(_of_rank_4(call.bias), seen)
    last = last_columns(call)
    for start in range(0, call.query.shape[2], size):
        rows = slice(start, min(start + size, call.query.shape[2]))
        yield _block(rows, seen, _rows(bias, rows), _rows(last, rows))


def _block(rows: slice, seen: int, bias: Tensor | None, last: Tensor | None) -> Block:
    hidden = None
    if last is not None:
        seen = min(seen, max(1, int(last.max()) + 1))
        first = min(seen, max(0, int(last.min()) + 1))
        hidden = torch.arange(first, seen) > last if first < seen else None
    if bias is None:
        return Block(rows, seen, None, hidden, _blind(hidden, seen))
    allowed = (bias if bias.dtype == torch.bool else bias > float("-inf"))[..., :seen]
    if hidden is not None:
        allowed = _without(allowed, hidden)
    end = _end(allowed)
    blind = ~allowed.any(dim=-1, keepdim=True)
    added = None if bias.dtype == torch.bool else bias[..., :end]
    unseen = _unless_empty(~allowed[..., :end]) if added is None or hidden is not None else None
    return Block(rows, end, added, unseen, _unless_empty(blind))


def _without(allowed: Tensor, hidden: Tensor) -> Tensor:
    """What is allowed and not hidden, ``[B or 1, H or 1, rows, seen]``."""
    shape = torch.broadcast_shapes(allowed.shape[:3], hidden.shape[:3])
    left = allowed.expand(*shape, allowed.shape[3]).clone()
    left[..., -hidden.shape[3] :] &= ~hidden
    return left


def _end(allowed: Tensor) -> int:
    """Columns up to the last one that is allowed for anybody; at least 1."""
    used = allowed.flatten(0, 2).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def _blind(hidden: Tensor | None, seen: int) -> Tensor | None:
    """Queries from which all of ``seen`` is hidden; None: there are none."""
    if hidden is None or hidden.shape[3] < seen:
        return None
    return _unless_empty(hidden.all(dim=-1, keepdim=True))


def _unless_empty(condition: Tensor) -> Tensor | None:
    """A condition that holds somewhere, or None."""
    return condition if bool(condition.any()) else None


def _of_rank_4(bias: Tensor) -> Tensor:
    return bias[(None,) * (4 - bias.dim())]


def _columns(bias: Tensor, seen: int) -> Tensor:
    """A bias with a column for each of the first ``seen`` rows."""
    wide = bias.expand(*bias.shape[:3], seen) if bias.shape[3] == 1 else bias
    return wide[..., :seen]


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, rows]


def _of_heads(tensor: Tensor | None, heads: slice) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]
