"""Values of a PyTorch graph that no node makes, and tensors as arrays.

ONNX counts in tensors, PyTorch in numbers: what a builder treats as an int64 vector is `Sizes`
here. A number that stands among the operands of an aten operator is a `Literal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import fx

from mla_opt.handles import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BFLOAT16,
    torch.bool: np.dtype(np.bool_),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
}
_TORCH_DTYPES = {kind: dtype for dtype, kind in _DTYPES.items()}


@dataclass(frozen=True, eq=False, slots=True)
class Sizes:
    """Numbers that count, each fixed or a node of the graph that makes it."""

    parts: tuple[int | fx.Node, ...]
    name: str = "sizes"


@dataclass(frozen=True, eq=False, slots=True)
class Literal:
    """A number that an operator was given directly."""

    number: float
    name: str = "number"


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy type of a PyTorch one; ``object`` for those that NumPy cannot hold."""
    return _DTYPES.get(dtype, np.dtype(object))


def torch_dtype(dtype: np.dtype[Any] | str) -> torch.dtype:
    """The PyTorch type of a NumPy one or of its name."""
    return _TORCH_DTYPES[BFLOAT16 if str(dtype) == "bfloat16" else np.dtype(dtype)]


def to_array(tensor: torch.Tensor) -> Array:
    """The tensor as an array, sharing its memory where it lies in the CPU's."""
    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        return plain.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    array: Array = plain.resolve_conj().resolve_neg().numpy()
    return array


def to_tensor(array: Array) -> torch.Tensor:
    """The array as a tensor, sharing its memory where it can."""
    dense = np.array(array, order="C", copy=None)
    if not dense.flags.writeable:
        dense = dense.copy()
    if dense.dtype == BFLOAT16:
        return torch.from_numpy(dense.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(dense)
