"""What optimizing holds in memory: nothing of what the layers hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt import aside, optimize
from mla_opt.files.model_io import write_model
from tests.benchmarks import deep_model
from tests.benchmarks.dims import Dims

HEADS, NOPE, VALUE, LATENT, LAYERS = 8, 128, 128, 512, 2
#: Bytes of W_UK and W_UV of one layer.
OF_LAYER = HEADS * (NOPE + VALUE) * LATENT * 2
#: Real widths of a head and of the latent, and little else.
DIMS = Dims(LAYERS, 64, HEADS, NOPE, 64, VALUE, LATENT, None, 1, 32)

CASES = [("float16", "auto"), ("float16", "float"), ("4bit", "auto")]


@pytest.fixture(autouse=True)
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is as large as a matrix may stay in memory."""
    monkeypatch.setattr(aside, "IN_MEMORY", 0)
    monkeypatch.setattr(aside, "LARGE", 1 << 18)


def optimized(folder: Path, kind: str, weights: Any) -> dict[str, ir.TensorProtocol]:
    """The stored tensors of a model, which is written as ``out.onnx``."""
    model = optimize(
        deep_model.make(kind, DIMS, folder / "model.onnx"), verify=False, weights=weights
    ).model
    tracemalloc.start()
    write_model(model, folder / f"{weights}.onnx", force=True)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One tensor is put in order or packed at a time, if any.
    assert taken < OF_LAYER * (1.3 if weights == "float" else 0.5)
    stored = model.graph.initializers.items()
    return {name: value.const_value for name, value in stored if value.const_value is not None}


def in_memory(tensor: ir.TensorProtocol) -> bool:
    """Whether a stored tensor takes memory while nobody reads it."""
    if tensor.nbytes < aside.LARGE or isinstance(tensor, ir.ExternalTensor):
        return False
    if isinstance(tensor, ir.LazyTensor):
        return tensor.cache or np.shares_memory(tensor.numpy(), tensor.numpy())
    return aside.pages_of(tensor.numpy()) is None


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_no_matrix_stays_in_memory(tmp_path: Path, kind: str, weights: str) -> None:
    stored = optimized(tmp_path, kind, weights)
    made = [n for n, t in stored.items() if "/mla/" in n and t.nbytes >= OF_LAYER / 4]
    assert len(made) == LAYERS * (2 if weights == "float" else 1)
    assert not [name for name, tensor in stored.items() if in_memory(tensor)]
    # Told by the definition of their operator: in float16 a run of it rounds.
    assert {stored[name].dtype.bitwidth for name in made} == {8 if kind == "4bit" else 16}


def test_both_ways_to_store_them_hold_the_same_numbers(tmp_path: Path) -> None:
    held, apart = (optimized(tmp_path, "float16", weights) for weights in ("auto", "float"))

    def named(tensors: dict[str, ir.TensorProtocol], end: str) -> Any:
        return [tensor.numpy() for name, tensor in tensors.items() if name.endswith(f"/{end}")]

    w_uk, w_uv = named(apart, "w_uk"), named(apart, "w_uv")
    for rows, keys, values in zip(named(held, "kv_b"), w_uk, w_uv, strict=True):
        by_head = rows.reshape(HEADS, NOPE + VALUE, LATENT)
        np.testing.assert_array_equal(by_head[:, :NOPE], keys)
        np.testing.assert_array_equal(by_head[:, NOPE:].swapaxes(1, 2), values)
