"""Time one decode step of two models that compute the same, at a given past."""

from __future__ import annotations

import time
from pathlib import Path

from mla_opt.verification.feeds import Timeline
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.onnx.sessions import OpenModel, open_model
from mla_opt.verification.oracle import Driver, optimized_driver, original_driver
from mla_opt.verification.scenarios import Scenario

_WARM_UP = 2
_REPEATS = 7
_SEED = 0


def decode_seconds(original: Path, optimized: Path, past: int) -> tuple[float, float]:
    """Return the seconds that one new token takes on ``past`` random rows, before and after.

    The best of several runs each: everything that disturbs a measurement makes it longer.

    Raises:
        MlaOptError: a model cannot be run that way.
    """
    before, after = open_model(original, "original"), open_model(optimized, "optimized")
    changes = InterfaceMap.of(after.model)
    return (
        _seconds(before, original_driver(before.model, changes), past),
        _seconds(after, optimized_driver(after.model, changes), past),
    )


def _seconds(model: OpenModel, driver: Driver, past: int) -> float:
    step = Scenario(name="decode", batch=1, calls=(1,), padding=(0,), initial_past=past)
    timeline = Timeline.of(step.batch, step.total_len, step.padding, _SEED)
    feeds = driver.feeds(timeline, past, past + 1, step) | driver.made_up_states(step, _SEED)
    session = model.session()
    times: list[float] = []
    for _ in range(_WARM_UP + _REPEATS):
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return min(times[_WARM_UP:])
