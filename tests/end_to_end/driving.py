"""Generation with any ONNX model of these tests, whatever its cache looks like.

Independent of mla_opt's own verification: feeds come from the harness of the exports, and of the
optimized model only the map in its metadata is read, as an application would.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.exports.feeds import Feeds

INTERFACE = "mla_opt.interface"
DTYPES = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
Run = Callable[[Feeds], Feeds]


def onnxruntime_run(model: bytes) -> Run:
    """Run a model in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


class Generator:
    """Calls a model again and again, and keeps its states between the calls.

    A cache is an input whose name the interface map pairs with an output, or that is called like an
    output but for past and present. It starts empty, or as a buffer of `capacity` rows of rubbish.
    """

    def __init__(self, model: onnx.ModelProto, run: Run, batch: int, capacity: int = 32) -> None:
        self._run = run
        self._batch, self._capacity = batch, capacity
        self._inputs = {value.name: value.type.tensor_type for value in model.graph.input}
        text = {entry.key: entry.value for entry in model.metadata_props}.get(INTERFACE, "{}")
        self._map: dict[str, Any] = json.loads(text)
        outputs = [value.name for value in model.graph.output]
        self._pairs = {**_paired_by_name(self._inputs, outputs), **self._paired_by_map()}
        self._states = {name: self._empty(name) for name in self._pairs}
        self._seen = 0

    def __call__(self, tokens: Feeds) -> np.ndarray:
        """Logits of one call; `tokens` holds at least the inputs that are no states."""
        feeds = {name: tokens[name] for name in self._inputs if name in tokens} | self._states
        past_len = self._map.get("past_len_input")
        if past_len is not None:
            feeds[past_len] = np.full(self._batch, self._seen, dtype=np.int32)
        outputs = self._run(feeds)
        self._states = {past: outputs[present] for past, present in self._pairs.items()}
        self._seen += tokens["input_ids"].shape[1]
        return outputs["logits"]

    def _paired_by_map(self) -> dict[str, str]:
        ends = [state["optimized"] for state in self._map.get("states", [])]
        return {i: o for end in ends for i, o in zip(end["inputs"], end["outputs"], strict=True)}

    def _empty(self, name: str) -> np.ndarray:
        tensor = self._inputs[name]
        *_, width = dims = tensor.shape.dim
        buffers = self._map.get("past_len_input") is not None
        length = (self._map.get("capacity") or self._capacity) if buffers else 0
        shape = (self._batch, *map(_number, dims[1:-2]), length, _number(width))
        # A buffer's rows beyond the past are nobody's business, so they may hold anything.
        return np.full(shape, 7.5, dtype=DTYPES[tensor.elem_type])


def _number(dim: onnx.TensorShapeProto.Dimension) -> int:
    """The size of a fixed dim; transformers' exporter writes some as names made of digits."""
    return int(dim.dim_param) if dim.HasField("dim_param") else dim.dim_value


def _paired_by_name(inputs: dict[str, Any], outputs: list[str]) -> dict[str, str]:
    present = {_state_name(name): name for name in outputs if name != "logits"}
    pairs = {name: present.get(_state_name(name)) for name in inputs}
    return {name: output for name, output in pairs.items() if output is not None}


def _state_name(name: str) -> str:
    for word in ("past_key_values.layers.", "past_key_values.", "past.", "present."):
        before, found, after = name.partition(word)
        if found and before in ("", "input.", "output."):
            return after
    return name


def prompt(batch: int, length: int, padding: int, vocab: int = 97, seed: int = 3) -> Feeds:
    """Tokens of a first call; the first row begins with `padding` masked positions."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), dtype=np.int64)
    mask[0, :padding] = 0
    return {
        "input_ids": rng.integers(0, vocab, (batch, length)),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
    }


def following(tokens: Feeds, logits: np.ndarray) -> Feeds:
    """Tokens of the next call: each row's most probable one."""
    batch = logits.shape[0]
    mask = np.concatenate([tokens["attention_mask"], np.ones((batch, 1), np.int64)], axis=1)
    return {
        "input_ids": logits[:, -1].argmax(-1)[:, None],
        "attention_mask": mask,
        "position_ids": mask.sum(axis=1)[:, None] - 1,
    }


def valid(tokens: Feeds, logits: np.ndarray) -> np.ndarray:
    """Logits at positions that hold a token."""
    return logits[tokens["attention_mask"][:, -logits.shape[1] :].astype(bool)]


def largest_gap(reference: Generator, candidate: Generator, tokens: Feeds, steps: int = 5) -> float:
    """Prefill, then greedy decode steps of the reference: the largest difference of any logit."""
    gap = 0.0
    for _ in range(steps + 1):
        expected, found = reference(tokens), candidate(tokens)
        assert expected.shape == found.shape
        difference = valid(tokens, expected).astype(np.float64) - valid(tokens, found)
        assert np.isfinite(difference).all()
        gap = max(gap, float(np.abs(difference).max()))
        tokens = following(tokens, expected)
    return gap
