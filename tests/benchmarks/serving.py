"""Requests served one at a time, and in continuous batches of several sizes.

    python -m tests.benchmarks.serving [--requests N] [--places N ...] [--rounds N] [--quick]
        [--record benchmarks.md]

The model is that of the other benchmarks, with a static cache and the kernel. All requests are
there from the start; each has a prompt and a number of new tokens of its own. The ways run in
turns, and every request has to say the same in each of them. Prints the best and the median round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort

from mla_opt.benchmarking import machine
from mla_opt.runtimes.onnxruntime import generate, session
from mla_opt.runtimes.onnxruntime.batching import ContinuousBatch, Sampling
from tests.benchmarks import models, record
from tests.benchmarks.dims import LITE, TINY
from tests.benchmarks.runner import THREADS

Request = tuple[list[int], Sampling]
Said = list[list[int]]

#: Tokens of prompts, and new tokens, from and below.
PROMPTS, NEW = (16, 257), (32, 129)
ROWS = PROMPTS[1] + NEW[1]
#: What the others are compared with.
ONE = "one at a time, `generate`"
COLUMNS = (
    "| | s, best | s, median | new tokens/s | times one at a time |\n|---|---:|---:|---:|---:|"
)


def requests(count: int, vocabulary: int, shorter: int) -> list[Request]:
    """The same in every run."""
    rng = np.random.default_rng(0)
    prompts, new = ([max(n // shorter, 1) for n in rng.integers(*r, count)] for r in (PROMPTS, NEW))
    return [
        (rng.integers(0, vocabulary, size).tolist(), Sampling(limit))
        for size, limit in zip(prompts, new)
    ]


def one_at_a_time(opened: ort.InferenceSession, wanted: Sequence[Request]) -> Said:
    """Each in a call of its own."""
    results = (
        generate(opened, prompt, max_new_tokens=how.max_new_tokens) for prompt, how in wanted
    )
    return [result.tokens[0].tolist() for result in results]


def in_batches(batch: ContinuousBatch, wanted: Sequence[Request]) -> Said:
    """As many together as there are places for."""
    said: dict[int, list[int]] = {}
    order, left = [], list(reversed(wanted))
    while left or batch.running:
        while left and batch.free:
            order.append(batch.add(*left.pop()))
        for new in batch.step():
            said.setdefault(new.sequence, []).append(new.token)
    return [said[number] for number in order]


def measure(ways: dict[str, Callable[[], Said]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every way; ends the program where one says something else."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    wanted: Said | None = None
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            said = way()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
            wanted = said if wanted is None else wanted
            different = sum(a != b for a, b in zip(said, wanted, strict=True))
            if different:
                sys.exit(f"{name}: {different} of {len(wanted)} requests say something else")
    return seconds


def main(arguments: Sequence[str]) -> None:
    """Measure all that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--places", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model; shows that it works")
    record.add_option(parser)
    options = parser.parse_args(arguments)
    record.refuse_quick(parser, options)
    dims, shorter = (TINY, 8) if options.quick else (LITE, 1)
    path = models.optimized(models.exported(dims), cache="static")
    opened = session(path, intra_op_threads=THREADS, kernel=True)
    wanted = requests(options.requests, dims.vocab, shorter)
    ways: dict[str, Callable[[], Said]] = {ONE: lambda: one_at_a_time(opened, wanted)}
    for places in options.places:
        batch = ContinuousBatch.create(opened, sequences=places, rows=ROWS)
        ways[f"{places} places"] = lambda batch=batch: in_batches(batch, wanted)
    seconds = measure(ways, options.rounds)
    about = machine.measure(THREADS)
    said = sum(how.max_new_tokens for _, how in wanted)
    print(f"{about.cpu}, {about.cores} cores, ONNX Runtime {about.onnxruntime}, {THREADS} threads")
    counts = (
        f"{len(wanted)} requests, {sum(len(p) for p, _ in wanted)} prompt tokens, {said} new ones"
    )
    shown = table(seconds, said)
    print(counts, shown, sep="\n")
    if options.record:
        command = record.command_line("tests.benchmarks.serving", arguments)
        record.keep(options.record, about, "requests at once", command, [f"{counts}.", shown])


def table(seconds: dict[str, list[float]], said: int) -> str:
    """The ways, each beside the first; `said` is how many new tokens there are in all."""
    lines = [COLUMNS]
    for name, times in seconds.items():
        best, gain = min(times), min(seconds[ONE]) / min(times)
        median = statistics.median(times)
        lines.append(f"| {name} | {best:.2f} | {median:.2f} | {said / best:.0f} | {gain:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
