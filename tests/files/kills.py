"""Write a model, be killed at a chosen step or moment, and look at what is left.

Half of the models share the data file of another one, and have one of their own beside it.

Run as a program, so that what it forks has no threads of anybody else::

    python -m tests.files.kills steps KILL      # every step of every case
    python -m tests.files.kills random KILL 500 # moments drawn at random
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mla_opt.cli._exit import Stopped, stop_on_signals
from mla_opt.files.model_io import read_model, write_hashed, write_model

#: What writing asks of the system; the process is stopped before one of these, or behind it.
STEPS = ("open", "write", "pwrite", "ftruncate", "fsync", "rename", "replace", "unlink", "close")
OLD, NEW, LAST = 1.0, 2.0, 3.0


def model(value: float, elements: int = 600) -> ir.Model:
    """A model whose weights, in the data file, say what its metadata says."""
    weight = ir.tensor(np.full(elements, value, np.float32), name="w")
    stored = ir.Value(
        name="w", const_value=weight, shape=weight.shape, type=ir.TensorType(weight.dtype)
    )
    node = ir.node("Identity", [stored])
    node.outputs[0].name = "y"
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[stored], opset_imports={"": 18})
    made = ir.Model(graph, ir_version=10)
    made.metadata_props["value"] = str(value)
    return made


def write(path: Path, value: float, elements: int = 600) -> None:
    write_model(model(value, elements), path, force=True, inline_limit=0)


def source(folder: Path, value: float) -> Path:
    """The model whose data file one of this value shares."""
    return folder / "sources" / f"{value}.onnx"


def write_shared(path: Path, value: float, elements: int = 600) -> None:
    """Write a model with its weight in the file of another, and a second one in its own."""
    given = source(path.parent, value)
    made = read_model(given)
    own = ir.tensor(np.full(elements, value, np.float32), name="own")
    made.graph.register_initializer(ir.Value(name="own", const_value=own))
    write_hashed(made, path, force=True, inputs=[given], inline_limit=0, share=True)


def seen(path: Path) -> float | None:
    """What the model at a path holds; it must be whole."""
    if not path.exists():
        return None
    read = read_model(path)
    value = float(read.metadata_props["value"])
    for stored in read.graph.initializers.values():
        tensor = stored.const_value
        assert tensor is not None
        assert (tensor.numpy() == value).all(), "weights of one model beside the graph of another"
    return value


def stopped_at(step: int, behind: bool, number: int) -> None:
    """Let the process get a signal at its ``step``-th call of the system."""
    left = step

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            now = left == -1
            if now and not behind:
                os.kill(os.getpid(), number)
            result = original(*arguments, **named)
            if now and behind:
                os.kill(os.getpid(), number)
            return result

        return call

    for name in STEPS:
        setattr(os, name, counted(name, getattr(os, name)))


def forked(work: Callable[[], None]) -> int:
    """Run in a process of its own; returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except Stopped as stopped:
            os._exit(100 + stopped.number)
        except BaseException as error:
            print(f"unexpected: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    assert code in (0, 100 + signal.SIGTERM), code
    return max(code - 100, 0)


def check(folder: Path, existing: bool, share: bool) -> None:
    """The output is whole or absent, and nothing is left that the next run does not remove."""
    path = folder / "out.onnx"
    assert seen(path) in ((OLD, NEW) if existing else (None, NEW))
    write(path, LAST)
    assert seen(path) == LAST
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    assert len(names) == 2, names
    assert names[1] == "out.onnx" or names[0] == "out.onnx", names
    if share:
        assert [seen(source(folder, value)) for value in (OLD, NEW)] == [OLD, NEW]
        assert len(list((folder / "sources").iterdir())) == 4


def prepared(folder: Path, existing: bool, share: bool) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sources").mkdir(parents=True)
    for value in (OLD, NEW) if share else ():
        write(source(folder, value), value)
    if existing:
        (write_shared if share else write)(folder / "out.onnx", OLD)
    return folder / "out.onnx"


def every_step(folder: Path, number: int) -> int:
    """Stop the writer at each of its steps; returns how often that was."""
    stops = 0
    for existing, behind, share in itertools.product((False, True), repeat=3):
        for step in range(1000):
            path = prepared(folder, existing, share)

            def work(
                step: int = step, behind: bool = behind, path: Path = path, share: bool = share
            ) -> None:
                if number == signal.SIGTERM:
                    stop_on_signals()
                stopped_at(step, behind, number)
                (write_shared if share else write)(path, NEW)

            if forked(work) == 0:
                break
            stops += 1
            check(folder, existing, share)
    return stops


def seconds(folder: Path, elements: int, share: bool) -> float:
    """How long a writer takes that nobody stops."""
    path = prepared(folder, existing=True, share=share)
    begun = time.monotonic()
    forked(lambda: (write_shared if share else write)(path, NEW, elements))
    return time.monotonic() - begun


def at_random(folder: Path, number: int, times: int, seed: int) -> int:
    """Stop the writer at moments drawn at random; returns how often it came before the end.

    Some come before the new output is in place, and some behind that.
    """
    draw, stops, new = random.Random(seed), 0, 0
    elements = 2_000_000
    usual = [seconds(folder, elements, share) for share in (False, True)]
    for _ in range(times):
        existing, share = draw.random() < 0.7, draw.random() < 0.5
        path = prepared(folder, existing, share)
        child = os.fork()
        if child == 0:
            stop_on_signals()
            try:
                (write_shared if share else write)(path, NEW, elements)
            except BaseException:
                os._exit(1)
            os._exit(0)
        time.sleep(draw.random() * 1.3 * usual[share])
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        stops += status != 0
        new += seen(path) == NEW
        check(folder, existing, share)
    assert times < 100 or min(new, times - new) > times // 20, (new, times)
    return stops


def main() -> None:
    """Run one of the two; prints how often the writer was stopped."""
    mode, number = sys.argv[1], signal.Signals[f"SIG{sys.argv[2]}"]
    # In memory, where there is a place: a kill is the same there, and fsync takes no time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        place = Path(folder) / "model"
        if mode == "steps":
            print(every_step(place, number))
        else:
            print(at_random(place, number, int(sys.argv[3]), seed=int(time.time())))


if __name__ == "__main__":
    main()
