"""Operands of the contract's cases as tensors, and outputs as arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

import mla_opt.operator.torch.op  # noqa: F401
from mla_opt.operator import LatentAttentionOutputs, Signature, latent_attention
from mla_opt.operator.contract import INPUTS
from tests.operator.cases import RANK, SCALE, Feeds, difference

OPERATOR = torch.ops.mla_opt.latent_attention
IN_PLACE = torch.ops.mla_opt.latent_attention_
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Of outputs beside the definition: rounding of operands' types, sums of float32.
TOLERANCE = {
    torch.float16: 2e-3,
    torch.bfloat16: 1.2e-2,
    torch.float32: 2e-6,
    torch.float64: 1e-13,
}


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy; NumPy's bfloat16 goes by its bits."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array(value: torch.Tensor) -> np.ndarray:
    """Any floating-point tensor in float64."""
    return value.detach().to("cpu", torch.float64).numpy()


def positional(feeds: Feeds) -> list[torch.Tensor | None]:
    """Operands in the operator's order, None where absent."""
    return [tensor(feeds[name]) if name in feeds else None for name in INPUTS]


def attributes(signature: Signature, rank: int = RANK) -> dict[str, Any]:
    return {"scale": SCALE, "kv_lora_rank": rank, "causal": signature.causal}


def expected(signature: Signature, feeds: Feeds, rank: int = RANK) -> LatentAttentionOutputs:
    return latent_attention(**feeds, **attributes(signature, rank))


def assert_matches(
    outputs: Any, signature: Signature, feeds: Feeds, *, rank: int = RANK, tolerance: float = 0.0
) -> None:
    """The three outputs are those of the definition; [0] where it has none."""
    wanted = expected(signature, feeds, rank)
    output, *caches = outputs
    limit = tolerance or TOLERANCE[output.dtype]
    assert difference(array(output), wanted.output) <= limit
    for cache, rows in zip(caches, wanted[1:]):
        if rows is None:
            assert cache.shape == (0,)
        else:
            np.testing.assert_array_equal(array(cache), rows)
