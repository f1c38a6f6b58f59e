"""A long prompt through `generate`: how long it takes, and how much memory beyond the model.

    python -m tests.benchmarks.prompt MODEL.onnx TOKENS THREADS

is one of them in a process of its own, and prints what it took as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mla_opt.benchmarking.machine import Machine
from mla_opt.benchmarking.memory import memory, reset_peak, resident_of
from tests.benchmarks import models
from tests.benchmarks.dims import Dims
from tests.benchmarks.figures import Figure
from tests.benchmarks.sheet import Sheet, number

#: MB of 2^20 bytes that a prompt of `TARGET_TOKENS` may take beyond the model: 1.5 GB.
TARGET_MB = 1.5e9 / 2**20
TARGET_TOKENS = 32768
#: Tokens of the vocabulary that prompts are made of.
IDS = 61


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What one prompt took: seconds to its first new token, memory in MB of 2^20 bytes."""

    tokens: int
    seconds: float
    beyond_mb: float
    cache_mb: float


def run_once(model: Path, tokens: int, threads: int) -> Prompt:
    """Put one prompt into the model; called in a process of its own."""
    from mla_opt.runtimes.onnxruntime import generate, session

    opened = session(model, intra_op_threads=threads, kernel=True)
    weights = list(model.parent.iterdir())
    loaded, read = memory("VmRSS"), resident_of(weights)
    reset_peak()
    start = time.perf_counter()
    result = generate(opened, (np.arange(tokens) % IDS).tolist(), max_new_tokens=1)
    seconds = time.perf_counter() - start
    # Weights that lie beside the model are part of it, whenever they were read.
    beyond = memory("VmHWM") - loaded - (resident_of(weights) - read)
    return Prompt(tokens, seconds, beyond, result.cache.nbytes / 2**20)


def measure(model: Path, tokens: int, threads: int) -> Prompt:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.prompt", str(model)]
    command += [str(tokens), str(threads)]
    done = subprocess.run(command, cwd=models.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise models.BuildError(f"a prompt of {tokens}: {done.stderr.strip()[-models.LONGEST :]}")
    return Prompt(**json.loads(done.stdout.splitlines()[-1]))


def figures(
    prompts: Sequence[Prompt], dims: Dims, machine: Machine, most: float | None
) -> list[Figure]:
    """The memory of each, and its time over that of all its products; `most` is for the longest."""
    found = []
    for prompt in prompts:
        name, promised = f"prompt of {prompt.tokens} in chunks", prompt.tokens == TARGET_TOKENS
        limit = dims.prompt_operations(prompt.tokens, 0) / machine.gemm_gflops / 1e9
        bounds = (most, TARGET_MB) if promised and most is not None else (None, None)
        found += [
            Figure(
                f"{name}: of the limit", prompt.seconds / limit, None, bounds[0], at_least=False
            ),
            Figure(
                f"{name}: beyond the loaded model",
                prompt.beyond_mb,
                None,
                bounds[1],
                at_least=False,
                unit="MB",
            ),
        ]
    return found


def sheet(prompts: Sequence[Prompt]) -> Sheet:
    """All prompts."""
    rows = tuple(
        (
            str(prompt.tokens),
            number(prompt.seconds),
            number(prompt.tokens / prompt.seconds),
            number(prompt.beyond_mb),
            number(prompt.cache_mb),
        )
        for prompt in prompts
    )
    columns = ("tokens", "s to the first new token", "tokens/s", "peak beyond MB", "cache MB")
    return Sheet("A prompt through generate, static cache, with the kernel", columns, rows)


if __name__ == "__main__":
    path, length, processors = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(run_once(Path(path), int(length), int(processors)))))
