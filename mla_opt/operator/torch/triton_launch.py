"""Runs a checked call of the PyTorch operator on the Triton kernels."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from mla_opt.kernels.triton.attend import attend_split
from mla_opt.kernels.triton.combine import combine_splits
from mla_opt.kernels.triton.store import store_rows
from mla_opt.kernels.triton.tiles import MOST_SPLITS, Tile, splits_for, tile_for
from mla_opt.operator.torch.call import (
    Caches,
    Call,
    Outputs,
    bias_strides,
    empty_output,
    make_outputs,
    write_caches,
)
from mla_opt.operator.torch.composite import stored

# Widths, rounded up to a power of 2, for which a tile fits the shared memory of every device.
MOST_BLOCK_C, MOST_BLOCK_R = 512, 64
# Elements of a sequence's rows and of its bias: offsets within them have 32 bits.
_MOST_ELEMENTS = 2**31


def takes(call: Call) -> bool:
    """Whether there is a kernel for the call: not for float64, nor for wider or many more rows."""
    return (
        call.query.dtype != torch.float64
        and triton.next_power_of_2(call.kv_lora_rank) <= MOST_BLOCK_C
        and triton.next_power_of_2(max(call.rope_dim, 1)) <= MOST_BLOCK_R
        and call.total_len * call.query.shape[3] < _MOST_ELEMENTS
        and call.query.shape[1] * call.query.shape[2] * 4 < _MOST_ELEMENTS
    )


def attend(call: Call, processors: int | None = None) -> Outputs:
    """Compute a checked call that `takes`; the outputs are new tensors.

    ``processors`` stands in for the number of multiprocessors of the device, where there is none.
    """
    with _device(call):
        caches = _stored(call)
        return make_outputs(call, _attend(call, caches, processors), caches)


def attend_in_place(call: Call, processors: int | None = None) -> Tensor:
    """Compute a checked call that `takes` and has ``past_len``; write its caches."""
    caches = (call.cache, call.rope_cache)
    if not all(cache is None or cache.is_contiguous() for cache in caches):
        outputs = attend(call, processors)
        write_caches(call, outputs)
        return outputs.output
    with _device(call):
        _write(call, caches)
        return _attend(call, caches, processors)


def _stored(call: Call) -> Caches:
    """Return caches with all rows in them: new tensors if there are new rows."""
    if call.past_len is None or not call.writes_cache:
        return stored(call)
    caches = (_copy(call.cache), _copy(call.rope_cache))
    _write(call, caches)
    return caches


def _write(call: Call, caches: Caches) -> None:
    cache, rope_cache = caches
    assert call.latent is not None
    assert call.past_len is not None
    assert cache is not None
    batch, _, new_len, width = call.latent.shape
    if batch * new_len == 0:
        return
    store_rows[(new_len, batch)](
        call.latent.contiguous(),
        call.past_len.contiguous(),
        cache,
        cache if rope_cache is None else rope_cache,
        new_len,
        call.cache_len,
        C=call.kv_lora_rank,
        R=call.rope_dim,
        BLOCK_W=triton.next_power_of_2(width),
        SPLIT_CACHE=rope_cache is not None,
    )


def _attend(call: Call, caches: Caches, processors: int | None) -> Tensor:
    """Return the attention to ``caches``, or to ``latent`` where there is no cache."""
    output = empty_output(call)
    batch, heads, query_len, _ = call.query.shape
    if output.numel() == 0:
        return output
    query = call.query.contiguous()
    source = call.latent if caches[0] is None else caches[0]
    assert source is not None
    rows = source.contiguous()
    rope = rows if caches[1] is None else caches[1].contiguous()
    tile = tile_for(_capability(call), heads * query_len, query.element_size())
    tiles = triton.cdiv(heads * query_len, tile.block_m)
    splits = splits_for(tiles * batch, call.total_len, processors or _processors(call))
    partial, log_sum = _partials(call, output, splits)
    bias, strides = _bias(call, output)
    attend_split[(tiles, splits, batch)](
        query,
        rows,
        rope,
        query if call.past_len is None else call.past_len.contiguous(),
        bias,
        query if call.sink is None else call.sink.contiguous(),
        output,
        partial,
        log_sum,
        call.scale,
        heads,
        query_len,
        call.total_len,
        call.new_len,
        splits,
        *strides,
        **constants(call, tile),
        ONE_SPLIT=splits == 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        combine_splits[(heads * query_len, batch)](
            partial,
            log_sum,
            query if call.sink is None else call.sink.contiguous(),
            output,
            heads,
            query_len,
            splits,
            C=call.kv_lora_rank,
            BLOCK_C=triton.next_power_of_2(call.kv_lora_rank),
            MOST_SPLITS=MOST_SPLITS,
            SINK=call.sink is not None,
        )
    return output


def constants(call: Call, tile: Tile) -> dict[str, Any]:
    """Return what the attending kernel is compiled for, but for the number of parts."""
    boolean = call.bias is not None and call.bias.dtype == torch.bool
    return {
        "C": call.kv_lora_rank,
        "R": call.rope_dim,
        "BLOCK_C": max(16, triton.next_power_of_2(call.kv_lora_rank)),
        "BLOCK_R": max(16, triton.next_power_of_2(max(call.rope_dim, 1))),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "SPLIT_CACHE": call.rope_cache is not None,
        "IN_PLACE": call.past_len is not None,
        "CAUSAL": call.causal,
        "SINK": call.sink is not None,
        "BIAS": 0 if call.bias is None else 2 if boolean else 1,
    }


def _partials(call: Call, output: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Return room for the parts, or any tensors where there is one part only."""
    if splits == 1:
        return output, output
    sizes = (*output.shape[:3], splits)
    partial = output.new_empty((*sizes, call.kv_lora_rank), dtype=torch.float32)
    return partial, output.new_empty(sizes, dtype=torch.float32)


def _bias(call: Call, unused: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the bias, booleans as bytes, and its strides along B, H, S, T."""
    if call.bias is None:
        return unused, (0, 0, 0, 0)
    boolean = call.bias.dtype == torch.bool
    return call.bias.view(torch.uint8) if boolean else call.bias, bias_strides(call.bias)


def _copy(cache: Tensor | None) -> Tensor | None:
    return None if cache is None else cache.clone(memory_format=torch.contiguous_format)


def _device(call: Call) -> contextlib.AbstractContextManager[Any]:
    """Make the device of the call the current one; Triton launches on that."""
    device = call.query.device
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _capability(call: Call) -> tuple[int, int]:
    device = call.query.device
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def _processors(call: Call) -> int:
    return int(torch.cuda.get_device_properties(call.query.device).multi_processor_count)
