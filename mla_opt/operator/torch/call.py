"""One call of the PyTorch operator: its operands, checked, and the tensors for its outputs.

Sizes may be symbolic (``torch.compile``, ``torch.export``). What must be equal is then demanded of
the symbols, at run time where nothing is known of them; what depends on the values of ``past_len``
is left to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false, statically_known_true

from mla_opt.operator.torch.demands import (
    check_rank,
    check_size,
    check_type,
    demand,
    either,
    name_of,
    refuse,
)

ELEMENT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NARROW_TYPES = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """Operands and attributes, named and shaped as the contract has them; None: absent."""

    query: Tensor
    latent: Tensor | None
    cache: Tensor | None
    past_len: Tensor | None
    bias: Tensor | None
    sink: Tensor | None
    rope_cache: Tensor | None
    scale: float
    kv_lora_rank: int
    causal: bool

    @property
    def new_len(self) -> int:
        """L: rows of ``latent``."""
        return 0 if self.latent is None else self.latent.shape[2]

    @property
    def cache_len(self) -> int:
        """M: rows of ``cache``."""
        return 0 if self.cache is None else self.cache.shape[2]

    @property
    def total_len(self) -> int:
        """T: columns of the scores."""
        return self.cache_len if self.past_len is not None else self.cache_len + self.new_len

    @property
    def rope_dim(self) -> int:
        """R: width of the rotary part."""
        return self.query.shape[3] - self.kv_lora_rank

    @property
    def writes_cache(self) -> bool:
        """Whether there are new rows and a cache to put them in."""
        return self.latent is not None and self.cache is not None


class Outputs(NamedTuple):
    """The outputs of the contract; those that the inputs do not call for have the shape [0]."""

    output: Tensor
    new_cache: Tensor
    new_rope_cache: Tensor


Caches = tuple[Tensor | None, Tensor | None]
"""``cache`` and ``rope_cache``, or what they became."""
EmptyCache = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Makes an uninitialised tensor of a cache and a shape."""


def make_call(
    query: Tensor,
    latent: Tensor | None = None,
    cache: Tensor | None = None,
    past_len: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    rope_cache: Tensor | None = None,
    *,
    scale: float,
    kv_lora_rank: int,
    causal: bool = False,
) -> Call:
    """Return a call, checked.

    Raises:
        InputError: the contract does not allow it.
    """
    operands = (query, latent, cache, past_len, bias, sink, rope_cache)
    call = Call(*operands, scale, kv_lora_rank, causal)
    check(call)
    return call


def make_outputs(call: Call, output: Tensor, caches: Caches) -> Outputs:
    """Return the outputs of a call after which the caches are ``caches``."""
    absent = call.query if call.cache is None else call.cache
    new = caches if call.writes_cache else (None, None)
    return Outputs(output, *(absent.new_empty(0) if cache is None else cache for cache in new))


def write_caches(call: Call, outputs: Outputs) -> None:
    """Copy the new caches over the old ones."""
    for cache, new in zip((call.cache, call.rope_cache), outputs[1:]):
        if cache is not None:
            cache.copy_(new)


def bias_strides(bias: Tensor) -> tuple[int, ...]:
    """Return the strides along B, H, S, T, in elements; 0 where the bias broadcasts."""
    own = [0 if size == 1 else stride for size, stride in zip(bias.shape, bias.stride())]
    return (*[0] * (4 - len(own)), *own)


def empty_outputs(call: Call, empty: EmptyCache = Tensor.new_empty) -> Outputs:
    """Return uninitialised tensors for the outputs of a checked call, its caches by ``empty``."""
    caches = (_empty_cache(call, cache, empty) for cache in (call.cache, call.rope_cache))
    return Outputs(empty_output(call), *caches)


def empty_output(call: Call) -> Tensor:
    """Return an uninitialised tensor for the first of them."""
    return call.query.new_empty((*call.query.shape[:3], call.kv_lora_rank))


def _empty_cache(call: Call, cache: Tensor | None, empty: EmptyCache) -> Tensor:
    if cache is None or not call.writes_cache:
        return (call.query if call.cache is None else call.cache).new_empty(0)
    # Counted by each cache's own rows: tracers may know those of the two by other symbols.
    grown = 0 if call.latent is None or call.past_len is not None else call.latent.shape[2]
    return empty(cache, (cache.shape[0], 1, cache.shape[2] + grown, cache.shape[3]))


def check(call: Call) -> None:
    """Refuse a call that the contract does not allow.

    Raises:
        InputError: an operand of wrong rank, size, type or device, or missing.
    """
    _check_query(call)
    _check_present(call)
    _check_devices(call)
    _check_types(call)
    _check_sources(call)
    _check_vector("past_len", call.past_len, "batch", call.query.shape[0])
    _check_vector("sink", call.sink, "heads", call.query.shape[1])
    _check_bias(call)


def check_past_len(call: Call) -> None:
    """Refuse lengths that leave the buffer; they must lie where reading them costs nothing.

    Raises:
        InputError: a sequence has fewer than 0 rows, or no room for the new ones.
    """
    if call.past_len is None:
        return
    room = call.cache_len - call.new_len
    for sequence, past in enumerate(call.past_len.tolist()):
        if not 0 <= past <= room:
            refuse(
                f"past_len[{sequence}] is {past}; cache has {call.cache_len} rows, "
                f"and {call.new_len} are to be added"
            )


def _check_query(call: Call) -> None:
    check_rank("query", call.query, 4)
    rank, width = call.kv_lora_rank, call.query.shape[3]
    demand(rank >= 1, lambda: f"kv_lora_rank is {rank}, at least 1 is needed")
    demand(rank <= width, lambda: f"kv_lora_rank is {rank}, but query has width {width}")


def _check_present(call: Call) -> None:
    if call.latent is None and call.cache is None:
        refuse("neither latent nor cache is given, so there are no keys")
    if call.cache is None and call.past_len is not None:
        refuse("past_len is given without the cache it counts rows of")
    if call.cache is None and call.rope_cache is not None:
        refuse("rope_cache is given without cache, its other half")


def _check_devices(call: Call) -> None:
    for name, operand in zip(Call._fields, call[:7]):
        if operand is not None and operand.device != call.query.device:
            refuse(f"{name} is on {operand.device}, query on {call.query.device}")


def _check_types(call: Call) -> None:
    element = call.query.dtype
    if element not in ELEMENT_TYPES:
        refuse(f"query is {name_of(element)}, expected {either(ELEMENT_TYPES)}")
    check_type("latent", call.latent, (element,))
    narrow = NARROW_TYPES if element == torch.float32 else ()
    check_type("cache", call.cache, (element, *narrow))
    if call.cache is not None:
        check_type("rope_cache", call.rope_cache, (call.cache.dtype,))
    check_type("past_len", call.past_len, (torch.int32,))
    check_type("bias", call.bias, (torch.bool, element))
    check_type("sink", call.sink, (element,))


def _check_sources(call: Call) -> None:
    """Check everything that holds latent rows."""
    width, rank = call.query.shape[3], call.kv_lora_rank
    _check_rows("latent", call.latent, call, width)
    if call.rope_cache is None:
        _check_rows("cache", call.cache, call, width)
    else:
        _check_rows("cache", call.cache, call, rank)
        _check_rope_cache(call, call.rope_cache)
    if statically_known_true(call.cache_len + call.new_len == 0):
        refuse("latent and cache have 0 rows; at least 1 is needed")


def _check_rows(name: str, rows: Tensor | None, call: Call, width: int) -> None:
    """Check [B, 1, any, width]."""
    if rows is None:
        return
    check_rank(name, rows, 4)
    check_size(name, "batch", rows.shape[0], call.query.shape[0])
    check_size(name, "axis 1", rows.shape[1], 1)
    check_size(name, "width", rows.shape[3], width)


def _check_rope_cache(call: Call, rope_cache: Tensor) -> None:
    width, rows = call.rope_dim, call.cache_len
    demand(
        width >= 1,
        lambda: "rope_cache is given, but query has 0 dims beyond kv_lora_rank; at least 1",
    )
    _check_rows("rope_cache", rope_cache, call, width)
    own = rope_cache.shape[2]
    demand(own == rows, lambda: f"rope_cache has {own} rows, cache has {rows}")


def _check_vector(name: str, vector: Tensor | None, what: str, size: int) -> None:
    if vector is None:
        return
    check_rank(name, vector, 1)
    own = vector.shape[0]
    demand(own == size, lambda: f"{name} has {own} elements, expected {size} ({what} of query)")


def _check_bias(call: Call) -> None:
    bias = call.bias
    if bias is None:
        return
    if not 1 <= bias.ndim <= 4:
        refuse(f"bias has rank {bias.ndim}, expected 1 to 4")
    scores = (*call.query.shape[:3], call.total_len)
    for axis, (own, size) in enumerate(zip(bias.shape[::-1], scores[::-1])):
        if own is not size and not guard_or_false(own == 1):
            _check_bias_axis(own, size, 3 - axis)


def _check_bias_axis(own: int, size: int, axis: int) -> None:
    demand(
        own == size,
        lambda: (
            f"bias has size {own} on axis {axis} of [B, H, S, T], which "
            f"does not broadcast to {size}"
        ),
    )
