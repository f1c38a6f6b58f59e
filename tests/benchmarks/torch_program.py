"""Exported programs beside the module they came from and beside ONNX Runtime.

    python -m tests.benchmarks.torch_program [--past 1024 --past 8192] [--rounds N]
    python -m tests.benchmarks.torch_program --new 512 [--new 2048] [--past 4096]
    python -m tests.benchmarks.torch_program --rewrite LAYERS

each with `--record benchmarks.md` where the table is to be kept.

The first times one token of two V2-Lite layers, batch 1, the cache fed back, variants in turns in
one process on two threads: the module in eager mode, the program that `mla_opt.optimize` makes of
its export, and the ONNX file of the same model through ONNX Runtime with the kernel. The second
times calls of many tokens: the module, the program with the kernel and without, and the portable
one. The third tells how long rewriting a deeper program takes, and how much memory beyond what is
there already.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import torch
import transformers

import mla_opt
from mla_opt.benchmarking import machine
from mla_opt.benchmarking.memory import memory, reset_peak
from mla_opt.benchmarking.turns import take_turns
from mla_opt.operator.torch.multi_head import cpu as multi_head_cpu
from tests.benchmarks import models, record
from tests.benchmarks.dims import Dims
from tests.benchmarks.export_deepseek import FlatCache, config, dynamic_shapes, example, randomize
from tests.benchmarks.runner import THREADS
from tests.benchmarks.sheet import number
from tests.benchmarks.suite import FULL

TURN_MS = 300.0
#: What is told with its version.
PACKAGES = ("torch", "transformers")


def module(dims: Dims) -> torch.nn.Module:
    """The model, with noise for weights that depends on their names."""
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(config(asdict(dims))).eval()
    randomize(model)
    return FlatCache(model).eval()


def exported(flat: torch.nn.Module, dims: Dims) -> torch.export.ExportedProgram:
    """The export of torch."""
    with torch.no_grad():
        return torch.export.export(
            flat, example(asdict(dims)), dynamic_shapes=dynamic_shapes(dims.layers)
        )


class TorchSteps:
    """A callable of tokens, mask, positions and cache, one token a step."""

    def __init__(self, call: Callable[..., Any], dims: Dims, past: int) -> None:
        self._call = call
        generator = torch.Generator().manual_seed(7)
        widths = (dims.kv_lora_rank, dims.qk_rope_head_dim)
        self.cache = [
            tuple(torch.randn(1, 1, past, width, generator=generator) for width in widths)
            for _ in range(dims.layers)
        ]
        self.logits = np.zeros(0)

    def step(self) -> float:
        past = self.cache[0][0].shape[2]
        ids, mask = torch.tensor([[past % 997]]), torch.ones(1, past + 1, dtype=torch.long)
        start = time.perf_counter()
        with torch.no_grad():
            logits, *present = self._call(ids, mask, torch.tensor([[past]]), self.cache)
        self.cache = list(zip(present[::2], present[1::2]))
        taken = (time.perf_counter() - start) * 1e3
        self.logits = logits.numpy()
        return taken


class OrtSteps:
    """The same through an ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession, start: TorchSteps) -> None:
        self._session = session
        names = [f"{i}.{part}" for i in range(len(start.cache)) for part in ("keys", "values")]
        tensors = [tensor.numpy() for layer in start.cache for tensor in layer]
        self._names = names
        self._past = dict(zip(names, map(onnxruntime.OrtValue.ortvalue_from_numpy, tensors)))
        self.logits = np.zeros(0)

    def step(self) -> float:
        past = self._past[self._names[0]].shape()[2]
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        feeds = {
            "input_ids": value(np.asarray([[past % 997]])),
            "attention_mask": value(np.ones((1, past + 1), np.int64)),
            "position_ids": value(np.asarray([[past]])),
            **{f"past.{name}": tensor for name, tensor in self._past.items()},
        }
        outputs = ["logits", *(f"present.{name}" for name in self._names)]
        start = time.perf_counter()
        logits, *present = self._session.run_with_ort_values(outputs, feeds)
        taken = (time.perf_counter() - start) * 1e3
        self._past = dict(zip(self._names, present))
        self.logits = logits.numpy()
        return taken


def session(dims: Dims) -> onnxruntime.InferenceSession:
    """The optimized ONNX file of the same model, with the kernel."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    path = models.optimized(models.exported(dims))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def row(*cells: object) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*columns: str) -> str:
    """The first two lines of one."""
    return f"{row(*columns)}\n|{'---:|' * len(columns)}"


def spent(samples: Sequence[float]) -> str:
    """The fastest and the median."""
    return f"{number(min(samples))} / {number(float(np.median(samples)))}"


def steps(pasts: Sequence[int], rounds: int) -> Iterator[str]:
    """Time the variants at every past length; a line for each."""
    torch.set_num_threads(THREADS)
    dims = FULL.lite
    flat = module(dims)
    program = mla_opt.optimize(exported(flat, dims)).model.module()
    opened = session(dims)
    variants = ("eager ms", "program ms", "ONNX Runtime ms")
    yield header("past", *variants, "eager / program", "program / ONNX Runtime", "error")
    for past in pasts:
        eager, rewritten = TorchSteps(flat, dims, past), TorchSteps(program, dims, past)
        workers = {"eager": eager, "program": rewritten, "ort": OrtSteps(opened, eager)}
        for worker in workers.values():
            worker.step()
        error = np.abs(eager.logits - rewritten.logits).max() / eager.logits.std()
        samples = take_turns(workers, rounds, TURN_MS)
        best = {name: min(each) for name, each in samples.items()}
        gain = f"{best['eager'] / best['program']:.1f}x"
        slower = f"{best['program'] / best['ort']:.2f}x"
        yield row(past, *(spent(samples[name]) for name in workers), gain, slower, f"{error:.0e}")


class TorchPrompts(TorchSteps):
    """The same of many tokens at a time, always on the cache as it was at first."""

    def __init__(self, call: Callable[..., Any], dims: Dims, past: int, new: int) -> None:
        super().__init__(call, dims, past)
        self._new = new

    def step(self) -> float:
        past = self.cache[0][0].shape[2]
        positions = torch.arange(past, past + self._new)[None]
        mask = torch.ones(1, past + self._new, dtype=torch.long)
        start = time.perf_counter()
        with torch.no_grad():
            logits, *_ = self._call(positions % 997, mask, positions, self.cache)
        taken = (time.perf_counter() - start) * 1e3
        self.logits = logits.numpy()
        return taken


def without_kernel(call: Callable[..., Any]) -> Callable[..., Any]:
    """A program that runs as where the kernel library was not built."""

    def called(*given: Any) -> Any:
        with mock.patch.object(multi_head_cpu, "kernel_available", return_value=False):
            return call(*given)

    return called


def prompts(pasts: Sequence[int], news: Sequence[int], rounds: int) -> Iterator[str]:
    """Time the variants at every length; a line for each."""
    torch.set_num_threads(THREADS)
    dims = FULL.lite
    flat = module(dims)
    program = exported(flat, dims)
    optimized = mla_opt.optimize(program).model.module()
    calls = {
        "eager": flat,
        "kernel": optimized,
        "aten": without_kernel(optimized),
        "portable": mla_opt.optimize(program, target="portable").model.module(),
    }
    yield header("new", "past", *(f"{name} ms" for name in calls), "error")
    for past in pasts:
        for new in news:
            workers = {name: TorchPrompts(call, dims, past, new) for name, call in calls.items()}
            for worker in workers.values():
                worker.step()
            eager = workers["eager"].logits
            error = (
                max(np.abs(eager - each.logits).max() for each in workers.values()) / eager.std()
            )
            samples = take_turns(workers, rounds, TURN_MS)
            yield row(new, past, *map(spent, samples.values()), f"{error:.0e}")


def rewrite(layers: int) -> Iterator[str]:
    """Time `mla_opt.optimize` on a program of so many layers."""
    dims = FULL.scaling(layers)
    program = exported(module(dims), dims)
    weights = sum(each.nbytes for each in program.state_dict.values()) / 2**20
    before = memory("VmRSS")
    reset_peak()
    start = time.perf_counter()
    result = mla_opt.optimize(program, verify=False)
    taken = time.perf_counter() - start
    beyond = memory("VmHWM") - before
    yield header("layers", "sites", "weights MB", "s", "MB beyond", "of the weights")
    sites = len(result.report.sites)
    share = f"{beyond / weights:.2f}x"
    yield row(layers, sites, f"{weights:.0f}", f"{taken:.1f}", f"{beyond:.0f}", share)


def chosen(options: argparse.Namespace) -> tuple[str, Iterator[str]]:
    """What is measured, and the lines of its table as they come."""
    if options.rewrite:
        return "rewriting a PyTorch program", rewrite(options.rewrite)
    if options.new:
        found = prompts(options.past or (0,), options.new, options.rounds)
        return "prompts of PyTorch programs", found
    found = steps(options.past or (1024, 8192, 32768), options.rounds)
    return "PyTorch programs", found


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--past", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--new", type=int, action="append")
    parser.add_argument("--rewrite", type=int, metavar="LAYERS")
    record.add_option(parser)
    options = parser.parse_args(arguments)
    what, lines = chosen(options)
    table = []
    for line in lines:
        print(line, flush=True)
        table.append(line)
    if options.record:
        command = record.command_line("tests.benchmarks.torch_program", arguments)
        about = machine.measure(THREADS)
        record.keep(options.record, about, what, command, ["\n".join(table)], PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
