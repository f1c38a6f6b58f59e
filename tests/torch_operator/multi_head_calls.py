"""Operands of the operator that holds its weights, and its outputs beside the definition."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

import mla_opt.operator.torch.op  # noqa: F401
from mla_opt.geometry import MlaGeometry
from mla_opt.operator.multi_head import INPUTS, MultiHeadSignature
from tests.operator.cases import Feeds, difference
from tests.operator.multi_head_cases import SCALE, SMALL, expected
from tests.torch_operator import calls

OPERATOR = torch.ops.mla_opt.multi_head_latent_attention
IN_PLACE = torch.ops.mla_opt.multi_head_latent_attention_
TOLERANCE = {
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
    torch.float32: 4e-6,
    torch.float64: 1e-13,
}
_NARROW = {
    np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn,
    np.dtype(ml_dtypes.float8_e5m2): torch.float8_e5m2,
}


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy; types that PyTorch does not take of NumPy go by their bits."""
    if array.dtype in _NARROW:
        return torch.from_numpy(array.view(np.uint8).copy()).view(_NARROW[array.dtype])
    return calls.tensor(array)


def positional(feeds: Feeds) -> list[torch.Tensor | None]:
    """Operands in the operator's order, None where absent."""
    return [tensor(feeds[name]) if name in feeds else None for name in INPUTS]


def attributes(
    signature: MultiHeadSignature, geometry: MlaGeometry = SMALL, scale: float = SCALE
) -> dict[str, Any]:
    return {
        "scale": scale,
        "kv_lora_rank": geometry.kv_lora_rank,
        "qk_nope_head_dim": geometry.qk_nope_head_dim,
        "v_head_dim": geometry.v_head_dim,
        "causal": signature.attention.causal,
        "bits": signature.storage.bits,
        "block_size": signature.storage.block_size,
        "block_rows": signature.storage.block_rows,
        "form": signature.form,
    }


def assert_matches(
    outputs: Any,
    signature: MultiHeadSignature,
    feeds: Feeds,
    *,
    geometry: MlaGeometry = SMALL,
    scale: float = SCALE,
) -> None:
    """The three outputs are those of the definition; [0] where it has none."""
    wanted = expected(signature, feeds, geometry=geometry, scale=scale)
    output, *caches = outputs
    assert difference(calls.array(output), wanted.output) <= TOLERANCE[output.dtype]
    for cache, rows in zip(caches, wanted[1:], strict=True):
        if rows is None:
            assert cache.shape == (0,)
        else:
            np.testing.assert_array_equal(calls.array(cache), rows)
