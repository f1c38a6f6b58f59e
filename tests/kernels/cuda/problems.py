"""Problems for the CUDA kernels: operands, their addresses, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from mla_opt.kernels.cuda_library import CudaProblem, ElementType, cuda_problem
from mla_opt.operator.reference import latent_attention

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {np.dtype(np.float16): ElementType.FLOAT16, BFLOAT16: ElementType.BFLOAT16}
# Of the largest number expected: rounding of the weights and of the output.
TOLERANCE = {np.dtype(np.float16): 1.5e-3, BFLOAT16: 1.2e-2}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One problem, from which everything else follows."""

    heads: int = 16
    query_len: int = 1
    past: int = 40
    lengths: tuple[int, ...] | None = None  # in place: past_len of each sequence
    batch: int = 1
    new_len: int | None = None  # None: query_len
    capacity: int = 0  # in place: rows of the buffer; 0: past + new
    rank: int = 512
    rope: int = 64
    dtype: np.dtype = BFLOAT16
    split_cache: bool = False
    has_cache: bool = True
    aliased: bool = True
    bias: str = "none"
    bias_shape: str = "bhst"  # axes that do not broadcast
    sink: bool = False
    causal: bool = False
    scale: float = 0.1
    seed: int = 0
    change: dict[str, object] = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        return self.lengths is not None

    @property
    def new(self) -> int:
        return self.query_len if self.new_len is None else self.new_len

    @property
    def cache_rows(self) -> int:
        if not self.has_cache:
            return 0
        if not self.in_place:
            return self.past
        return self.capacity or max(self.lengths or (0,)) + self.new

    @property
    def total(self) -> int:
        return self.cache_rows if self.in_place else self.cache_rows + self.new

    def but(self, **changes: object) -> Case:
        return replace(self, **changes)


def operands(case: Case) -> Arrays:
    """Random inputs; those of a buffer's rows that are not valid are no numbers."""
    random = np.random.default_rng(case.seed)
    batch = len(case.lengths) if case.lengths is not None else case.batch

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32).astype(case.dtype)

    width = case.rank + case.rope
    arrays = {"query": normal(batch, case.heads, case.query_len, width)}
    if case.new:
        arrays["latent"] = normal(batch, 1, case.new, width)
    if case.has_cache:
        cache = normal(batch, 1, case.cache_rows, width)
        for sequence, length in enumerate(case.lengths or ()):
            cache[sequence, :, length:] = np.nan
        parts = (case.rank, width) if case.split_cache else (width,)
        for name, part in zip(("cache", "rope_cache"), np.split(cache, parts, axis=3)):
            if part.shape[3]:
                arrays[name] = np.ascontiguousarray(part)
    if case.lengths is not None:
        arrays["past_len"] = np.array(case.lengths, np.int32)
    if case.bias != "none":
        arrays["bias"] = _bias(case, batch, random)
    if case.sink:
        arrays["sink"] = normal(case.heads)
    return arrays


def _bias(case: Case, batch: int, random: np.random.Generator) -> np.ndarray:
    sizes = {"b": batch, "h": case.heads, "s": case.query_len, "t": case.total}
    shape = tuple(size if axis in case.bias_shape else 1 for axis, size in sizes.items())
    allowed = random.random(shape) > 1 / 3
    if case.bias == "boolean":
        return allowed
    return np.where(allowed, random.standard_normal(shape), -np.inf).astype(case.dtype)


def expected(case: Case, arrays: Arrays) -> Arrays:
    """The outputs by the float64 reference."""
    outputs = latent_attention(
        **arrays, scale=case.scale, kv_lora_rank=case.rank, causal=case.causal
    )
    named = zip(("output", "new_cache", "new_rope_cache"), outputs)
    return {name: value for name, value in named if value is not None}


def results(case: Case, arrays: Arrays, wanted: Arrays) -> Arrays:
    """Memory for the outputs, of numbers that are none; buffers are the inputs when aliased."""
    made = {}
    for name, value in wanted.items():
        old = name.removeprefix("new_")
        if name != "output" and case.in_place and case.aliased:
            made[name] = arrays[old]
        else:
            made[name] = np.full(value.shape, np.nan, case.dtype)
    return made


def problem_of(case: Case, arrays: Arrays, made: Arrays, address) -> CudaProblem:
    """The problem; ``address`` says where an array lies."""
    batch, heads, query_len, _ = arrays["query"].shape
    bias = arrays.get("bias")
    strides = (0, 0, 0, 0)
    if bias is not None:
        dense = [step // bias.itemsize for step in bias.strides]
        strides = tuple(step if size > 1 else 0 for step, size in zip(dense, bias.shape))
    fields = {
        "element_type": TYPES[case.dtype],
        "batch": batch,
        "heads": heads,
        "query_len": query_len,
        "new_len": case.new,
        "cache_len": case.cache_rows,
        "kv_lora_rank": case.rank,
        "rope_dim": case.rope,
        "scale": case.scale,
        "causal": case.causal,
        "bias_type": ElementType.BOOL if case.bias == "boolean" else None,
        "bias_strides": strides,
        **{name: address(array) for name, array in (arrays | made).items()},
    }
    return cuda_problem(**(fields | case.change))


def difference(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest number of its query row; infinite where not finite."""
    got = actual.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    size = np.abs(wanted).max(axis=-1, keepdims=True, initial=0.0)
    size = np.maximum(size, 0.02 * size.max(initial=1e-30))
    return float((np.abs(got - wanted) / size).max(initial=0.0))


def check(case: Case, wanted: Arrays, made: Arrays) -> None:
    """Outputs within the tolerance of the type; caches exactly."""
    assert difference(made["output"], wanted["output"]) <= TOLERANCE[case.dtype]
    for name in wanted.keys() - {"output"}:
        np.testing.assert_array_equal(made[name].astype(np.float64), wanted[name], err_msg=name)
