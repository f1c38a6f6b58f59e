"""One model in a process of its own, which does what the runner writes to its standard input.

    python -m tests.benchmarks.worker MODEL.onnx THREADS [kernel]

Each line in is a JSON object, each line out another: `{"do": "setup", "past": 1024, "new": 1,
"feed_back": true}`, `{"do": "step"}` (milliseconds of one run), `{"do": "logits"}` (of the last
step) and `{"do": "peak"}` (MB). Every variant is treated alike: inputs and outputs are bound, so
nothing is copied to or from NumPy in the timed region, and present caches go back in as they are.
A static cache has room for one step, which is taken again and again.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mla_opt.benchmarking.memory import memory, reset_peak
from mla_opt.benchmarking.serving import serve
from mla_opt.benchmarking.sessions import open_session

TOKENS = ("input_ids", "attention_mask", "position_ids")
PAST_LEN = "past_len"


def noise(name: str, shape: list[int]) -> ort.OrtValue:
    """Random cache content that depends on the name only."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return ort.OrtValue.ortvalue_from_numpy(random.standard_normal(shape, dtype=np.float32))


class Worker:
    """The model, its cache, and the position it has reached."""

    def __init__(self, path: str, threads: int, kernel: bool):
        self.session = open_session(Path(path), threads, kernel)
        self.loaded_mb = memory("VmRSS")
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.static = PAST_LEN in self.inputs
        self.states = [name for name in self.inputs if name not in (*TOKENS, PAST_LEN)]
        if len(self.states) != len(self.outputs) - 1:
            raise SystemExit(
                f"{path}: cannot pair inputs {self.states} with outputs {self.outputs}"
            )

    def setup(self, past: int, new: int, feed_back: bool) -> dict[str, Any]:
        """Fill the cache with `past` random rows; each step then brings `new` tokens."""
        self.cache: dict[str, ort.OrtValue] = {}
        self.results: list[ort.OrtValue] = []
        reset_peak()
        self.past, self.new, self.feed_back = past, new, feed_back and not self.static
        for name in self.states:
            self.cache[name] = noise(name, self.state_shape(name))
        rows = {name: self.state_shape(name) for name in self.states}
        return {"loaded_mb": self.loaded_mb, "states": rows}

    def state_shape(self, name: str) -> list[int]:
        """[1, heads, past, width] for a cache input; rows are always the last axis but one."""
        shape = [1, *self.inputs[name].shape[1:]]
        shape[-2] = self.past + (self.new if self.static else 0)
        return shape

    def tokens(self) -> dict[str, np.ndarray[Any, Any]]:
        """Ids, mask and positions of the next step."""
        total = self.past + self.new
        return {
            PAST_LEN: np.array([self.past], np.int32),
            "input_ids": (np.arange(self.past, total, dtype=np.int64) % 61)[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.past, total, dtype=np.int64)[None],
        }

    def step(self) -> dict[str, float]:
        """Run once and take the present cache as the next past."""
        tokens = self.tokens()
        values = {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in tokens.items()}
        values.update(self.cache)
        self.results = []
        start = time.perf_counter()
        results = self.run(values)
        spent = (time.perf_counter() - start) * 1e3
        self.results = results[:1]
        if self.feed_back:
            self.cache = dict(zip(self.states, results[1:], strict=True))
            self.past += self.new
        return {"ms": spent}

    def run(self, values: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        """One run through an IO binding."""
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, values[name])
        binding.bind_output(self.outputs[0], "cpu")
        for name, state in zip(self.outputs[1:], self.states, strict=True):
            if self.static:
                binding.bind_ortvalue_output(name, values[state])
            else:
                binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        # The outputs keep the binding alive, which would keep the past cache alive with them.
        results = list(binding.get_outputs())
        binding.clear_binding_inputs()
        return results

    def logits(self) -> dict[str, list[float]]:
        """What the last step returned."""
        return {"logits": self.results[0].numpy().ravel().tolist()}

    def peak(self) -> dict[str, float]:
        """Most memory since `setup`, beyond the loaded model and, apart, beyond nothing."""
        peak = memory("VmHWM")
        return {"beyond_mb": peak - self.loaded_mb, "peak_mb": peak}


if __name__ == "__main__":
    serve(lambda: Worker(sys.argv[1], int(sys.argv[2]), "kernel" in sys.argv[3:]))
