"""One ONNX model in a process of its own, stepping as its runner asks.

    python -m mla_opt.benchmarking.onnx_worker JOB

JOB is a pickled `Job`, written by the process that started this one. Every model is treated alike:
inputs and outputs are bound, nothing is copied to or from NumPy in the timed region, present caches
go back in as they are, and a buffer is bound to its input and its output.
"""

from __future__ import annotations

import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from mla_opt.benchmarking.memory import die_first, memory, reset_peak, resident_of
from mla_opt.benchmarking.pair import Pair, Side
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.serving import serve
from mla_opt.benchmarking.sessions import open_session, open_twin
from mla_opt.ort_values import aligned, from_ort_value, to_ort_value
from mla_opt.verification.feeds import Timeline
from mla_opt.verification.onnx.sessions import Session
from mla_opt.verification.oracle import Call, Run, run_scenario

Array = npt.NDArray[Any]
SEED = 0


@dataclass(frozen=True, slots=True)
class Job:
    """Which model to run, and how.

    Attributes:
        kernel: whether the kernel library is to be used.
        twin: whether to run the model with its activations in floating point, to be compared.
    """

    pair: Pair
    side: Side
    threads: int
    kernel: bool
    twin: bool = False

    def write(self, path: Path) -> Path:
        """Save it for the process that is to do it."""
        path.write_bytes(pickle.dumps(self))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The inverse of `write`; only for files that this program wrote."""
        job = pickle.loads(path.read_bytes())
        assert isinstance(job, cls)
        return job


class OnnxWorker:
    """The model, its caches, and the position it has reached."""

    def __init__(self, job: Job) -> None:
        self.pair, self.side = job.pair, job.side
        model = job.pair.model(job.side)
        self.driver = model.driver
        self.session = (
            open_twin(model.path, job.kernel)
            if job.twin
            else open_session(model.path, job.threads, job.kernel)
        )
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.states: dict[str, ort.OrtValue] = {}
        self.done = 0
        self.files = model.files
        self.loaded_mb, self.read_mb = memory("VmRSS"), resident_of(self.files)

    def setup(self, context: int, batch: int, query: int) -> dict[str, Any]:
        """Fill the caches with `context` random rows for steps of `query` tokens."""
        self.point = Point(context, batch, query)
        self.most = self.pair.steps(self.point)
        self.scenario = self.point.scenario(self.most)
        self.timeline = Timeline.of(batch, self.scenario.total_len, self.scenario.padding, SEED)
        self.first: dict[str, Array] | None = None
        self.peak_mb = 0.0
        self._rewind()
        return {"loaded_mb": self.loaded_mb}

    def step(self) -> dict[str, float]:
        """Run once and take the present caches as the next past."""
        if self.done == self.most:
            self._rewind()
        values = {**self._feeds(), **self.states}
        start = time.perf_counter()
        results = self._run(values)
        spent = (time.perf_counter() - start) * 1e3
        if self.first is None:
            names = self.driver.interface.state_outputs
            self.first = {n: from_ort_value(v) for n, v in results.items() if n not in names}
        if self.most > 1:
            self.done += 1
            pairs = self.driver.interface.states
            self.states = {s.input.name: results[s.output.name] for s in pairs}
        return {"ms": spent}

    def agree(self, path: str) -> dict[str, Any]:
        """Write what the first step said, for comparison."""
        assert self.first is not None
        call = Call(self.point.query, self.point.context, self.first, {})
        _write(path, Run(self.point.scenario(1), (call,)))
        return {}

    def prompt(self, path: str, batch: int) -> dict[str, Any]:
        """Write what a prompt and some steps gave, from an empty cache on; with the ids fed."""
        scenario = self.pair.prompt(batch)
        timeline = Timeline.of(batch, scenario.total_len, scenario.padding, SEED)
        session = Session(self.side, self.session)
        before, after = self.pair.aligner.compared_states()
        compared = before if self.side == "original" else after
        run = run_scenario(session, self.driver, scenario, SEED, compared)
        _write(path, run)
        feeds = self.driver.feeds(timeline, 0, scenario.calls[0], scenario)
        port = self.driver.interface.token_ids
        return {"ids": None if port is None else feeds[port.name].tolist()}

    def peak(self) -> dict[str, float]:
        """Most memory since `setup`, beyond the model, of which some is only read by a step."""
        of_model = self.loaded_mb + resident_of(self.files) - self.read_mb
        return {"beyond_mb": max(0.0, self._peak() - of_model)}

    def _peak(self) -> float:
        return max(self.peak_mb, memory("VmHWM"))

    def _rewind(self) -> None:
        """Start again from the first past; what it takes to make that up is not counted."""
        if self.done:
            self.peak_mb = self._peak()
        self.states.clear()
        past = self.pair.past(self.side, self.scenario)
        self.states = {name: to_ort_value(aligned(past.pop(name))) for name in tuple(past)}
        self.done = 0
        self.fed: dict[str, ort.OrtValue] = {}
        reset_peak()

    def _feeds(self) -> dict[str, ort.OrtValue]:
        """Everything but the caches; made once where the step is always the same."""
        if self.most > 1 or not self.fed:
            start = self.point.context + self.done * self.point.query
            stop = start + self.point.query
            feeds = self.driver.feeds(self.timeline, start, stop, self.scenario)
            self.fed = {name: to_ort_value(feed) for name, feed in feeds.items()}
        return self.fed

    def _run(self, values: dict[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        binding = self.session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        buffers = {
            s.output.name: values[s.input.name]
            for s in self.driver.interface.states
            if s.kind == "buffer"
        }
        for name in self.outputs:
            if name in buffers:
                binding.bind_ortvalue_output(name, buffers[name])
            else:
                binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        # The outputs keep the binding alive, which would keep the past caches alive with them.
        results = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        binding.clear_binding_inputs()
        return results | buffers


def _write(path: str, run: Run) -> None:
    Path(path).write_bytes(pickle.dumps(run))


def main(job: str) -> None:
    """Serve requests until standard input ends."""
    die_first()
    serve(lambda: OnnxWorker(Job.read(Path(job))))


if __name__ == "__main__":
    # Under its own name: what is pickled here is read by another module.
    from mla_opt.benchmarking import onnx_worker

    onnx_worker.main(sys.argv[1])
