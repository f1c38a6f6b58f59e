"""Packed tokens by the operator's definition in float64, against each sequence by itself."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.graphs.onnx.widening import widen
from mla_opt.verification.onnx.paged.stand_in import with_exact_rows, with_stand_in
from tests.graphs.latent_block import Block, build
from tests.labels import label
from tests.paged.evaluator import evaluate
from tests.paged.serving import Arrays, Server
from tests.passes.harness import compute

CAUSAL = Block(bias="computed", mask_from="keys")
REAL = Block(
    heads=3, nope=128, rope=64, value=128, latent=512, hidden=8, q_lora=None, cache="expanded",
    bias="computed",
)  # fmt: skip

#: Which sequences have how many new tokens, call by call: prompts of different lengths, steps of
#: all, a prompt beside steps and a chunk, and one that is left out meanwhile.
CALLS: list[dict[str, int]] = [
    {"a": 5, "b": 1, "c": 19},
    {"a": 1, "b": 1, "c": 1},
    {"c": 1, "d": 33, "a": 6},
    {"b": 17, "d": 1, "a": 1},
]


def paged(block: Block, **options: Any) -> ir.Model:
    """The model of a block over packed tokens."""
    given = {"cache_type": "bfloat16"} | options
    result = mla_opt.optimize(build(block), target="onnxruntime-paged", verify=False, **given)
    return result.model


def exact(block: Block, **options: Any) -> ir.Model:
    """The same without any rounding to 16 bits: what is left is float32."""
    model = paged(block, **options)
    widen(model)
    return model


class Tokens:
    """Random tokens of each sequence, as many as are asked for, with their places."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.given: dict[str, int] = {}

    def next(self, name: str, count: int) -> Arrays:
        start = self.given.get(name, 0)
        self.given[name] = start + count
        rng = np.random.default_rng([ord(name), start])
        hidden = rng.standard_normal((1, count, self.block.hidden)).astype(self.block.dtype)
        return {"inputs_embeds": hidden, "position_ids": np.arange(start, start + count)[None]}


class Alone:
    """The original model, called for one sequence at a time, each with its own cache."""

    def __init__(self, block: Block) -> None:
        self.model, self.states = build(block), dict[str, Arrays]()
        self.empty = {
            value.name: np.zeros([d.dim_value or 1 for d in value.type.tensor_type.shape.dim])
            for value in self.model.graph.input
            if value.name.startswith("past")
        }
        self.dtype = block.dtype

    def call(self, name: str, given: Arrays) -> np.ndarray[Any, Any]:
        empty = {key: v[..., :0, :].astype(self.dtype) for key, v in self.empty.items()}
        made = compute(self.model, {**given, **self.states.get(name, empty)})
        self.states[name] = {key: made[key.replace("past", "present")] for key in self.empty}
        return made["hidden"]


def assert_serves(
    block: Block, model: ir.Model, tolerance: float, run=evaluate, calls=None, **options: Any
) -> Server:
    """Every call, every sequence: the same as by itself."""
    server, alone, tokens = Server(model, run, **options), Alone(block), Tokens(block)
    for call in calls or CALLS:
        given = {name: tokens.next(name, count) for name, count in call.items()}
        seen = server.call(given)
        for name, of_sequence in given.items():
            wanted = alone.call(name, of_sequence).astype(np.float64)
            error = np.abs(seen[name] - wanted).max() / np.abs(wanted).max()
            assert error < tolerance, (name, call, error)
    return server


BLOCKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"bias": "computed"}, {}),
    ({"bias": "computed", "mask_from": "cache", "cache": "packed"}, {}),
    ({"bias": "computed", "cache": "expanded", "value_bias": True}, {"absorb": "fold"}),
    ({"bias": "computed", "layers": 3, "share": True}, {"absorb": "fold-q"}),
    ({"bias": "computed", "layers": 2, "row_rank": 3, "order": tuple(reversed(range(12)))}, {}),
    ({"bias": "computed", "rope": 0, "latent": 16}, {"absorb": "fold-o"}),
]


@pytest.mark.parametrize(("options", "asked"), BLOCKS, ids=label)
def test_prompts_chunks_and_steps_of_several_sequences(options, asked) -> None:
    block = Block(**options)
    assert_serves(block, exact(block, **asked), 1e-5)


def test_real_widths() -> None:
    """Rows of 512 + 64 numbers, in blocks out of order."""
    model = exact(REAL)
    assert [str(v.shape) for v in model.graph.inputs if "past." in str(v.name)] == [
        "[num_blocks,block_size,1,576]"
    ]
    assert_serves(REAL, model, 2e-5, calls=[{"a": 3, "b": 18}, {"b": 1, "a": 1}])


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_a_float32_model_is_rounded_in_front_of_the_operator(kind: str, tolerance: float) -> None:
    model = paged(CAUSAL, cache_type=kind)
    server = assert_serves(CAUSAL, model, tolerance)
    assert {cache.dtype.name for cache in server.caches.values()} == {kind}


def test_rows_that_are_there_are_not_written_again() -> None:
    """A prefix that is known: its slots are -1, and its tokens attend to what is there."""
    server = Server(exact(CAUSAL), evaluate)
    tokens = Tokens(CAUSAL).next("a", 20)
    first = server.call({"a": tokens})
    kept = {name: cache.copy() for name, cache in server.caches.items()}
    server.lengths.clear()
    changed = {**tokens, "inputs_embeds": tokens["inputs_embeds"].copy()}
    again = server.call({"a": changed}, skip=("a",))
    np.testing.assert_array_equal(again["a"], first["a"])
    for name, cache in server.caches.items():
        np.testing.assert_array_equal(cache, kept[name])


HALF = Block(bias="computed", opset=21, dtype="float16")
#: The lowest number of its mask is minus infinity in float16.
FOR_HALF = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
CODES = {"int8": 127.0, "fp8": 448.0}


def calibrated(block: Block, largest: float) -> Arrays:
    """Scales by the largest rows of the original, with room for others."""
    alone, tokens = Alone(block), Tokens(block)
    for name in "abcd":
        alone.call(name, tokens.next(name, 40))
    rows = [np.concatenate([*states.values()], axis=-1) for states in alone.states.values()]
    peak = np.abs(np.concatenate(rows, axis=2)).max(axis=(0, 1, 2)).astype(np.float32)
    return {"past.0.latent_scale": (1.5 * peak / largest)[None, None]}


@FOR_HALF
@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 3e-2), ("fp8", 1e-1)])
def test_rows_in_codes(kind: str, tolerance: float) -> None:
    model = paged(HALF, cache_type=kind)
    scales = calibrated(HALF, CODES[kind])
    server = assert_serves(HALF, model, tolerance, scales=scales)
    (cache,) = server.caches.values()
    assert cache.dtype == {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}[kind]


@FOR_HALF
def test_a_model_of_16_bits_keeps_its_type() -> None:
    assert_serves(HALF, paged(HALF, cache_type="keep"), 5e-3)


# What verification runs in the operator's place


def in_runtime(model: ir.Model, feeds: Arrays) -> Arrays:
    return compute(with_stand_in(model), feeds)


@FOR_HALF
@pytest.mark.parametrize(("kind", "tolerance"), [("keep", 5e-3), ("int8", 3e-2), ("fp8", 1e-1)])
def test_the_stand_in_serves(kind: str, tolerance: float) -> None:
    scales = calibrated(HALF, CODES[kind]) if kind in CODES else {}
    model = paged(HALF, cache_type=kind)
    assert_serves(HALF, model, tolerance, in_runtime, scales=scales)


@FOR_HALF
def test_the_twin_that_rounds_nothing() -> None:
    """It is the model in float32, whatever its cache is."""
    model = with_exact_rows(paged(CAUSAL, cache_type="bfloat16"))
    assert {v.dtype for v in model.graph.inputs if "past." in str(v.name)} == {ir.DataType.FLOAT}
    assert_serves(CAUSAL, model, 1e-5, in_runtime)
    coded = with_exact_rows(paged(HALF, cache_type="int8"))
    assert [v.name for v in coded.graph.inputs if str(v.name).endswith("_scale")] == []
    assert_serves(HALF, coded, 5e-3, in_runtime)
