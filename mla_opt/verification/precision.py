"""How exact a model can be told to compute: by the types of its weights and of its caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.verification.parity import Tolerance

if TYPE_CHECKING:
    pass

ROUNDED_TYPES = (
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT8,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT16,
)
"""Types that rows of a cache are rounded to, the coarsest first."""

DEFAULT_WEIGHT_BYTES = 4
"""Of a model that stores no floats."""


def tolerance_for(
    original: ir.Model, optimized: ModelInterface, noise: Mapping[str, float]
) -> Tolerance:
    """The tolerance that the original's precision and the optimized model's caches ask for."""
    size = weight_bytes(original)
    rounded = rounded_cache_type(optimized)
    if size > 2 and rounded is not None:
        return Tolerance.for_rounded(rounded, noise)
    return Tolerance.for_bytes(size, noise)


def rounded_cache_type(interface: ModelInterface) -> str | None:
    """The coarsest type of 8 or 16 bits among a model's states, in NumPy's words; None: neither."""
    kinds = {state.input.dtype for state in interface.states}
    return next((str(kind.numpy()) for kind in ROUNDED_TYPES if kind in kinds), None)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the type that most float weights are stored in.

    Types of less than 16 bits say nothing: those weights are computed with in the type of their
    scales.
    """
    counts: Counter[int] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and _is_computed_with(tensor.dtype):
                counts[int(tensor.dtype.itemsize)] += tensor.size
    likely = counts.most_common(1)[0][0] if counts else DEFAULT_WEIGHT_BYTES
    return min(max(likely, 2), 8)


def _is_computed_with(kind: ir.DataType) -> bool:
    return kind.is_floating_point() and kind.itemsize >= 2
