"""What is measured: time of a decode step of ours and of the peers, point by point."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from mla_opt.kernels.cuda_library import CudaLibrary
from tests.gpu import ceilings, peers
from tests.gpu.decode import Point, Step, Timing, copies_for
from tests.gpu.driver import Device, DriverError

HEADS = (16, 64, 128)
KEYS = (1024, 4096, 16384, 65536)
BATCHES = (1, 8, 32, 128)
TURNS = 9
# A peer that fails this often, or once after so many seconds, is not tried again.
MOST_FAILURES, LONGEST_FAILURE = 3, 20.0


@dataclass(frozen=True)
class Rates:
    """What the device does at most: bytes and operations a second; None: not measured."""

    copy: float
    product: float | None


@dataclass(frozen=True)
class Row:
    """One kernel at one point; ``timing`` is None where it did not run, and ``note`` says why.

    ``loads``: of ours, what brings the keys.
    """

    kernel: str
    point: Point
    timing: Timing | None
    note: str = ""
    loads: str = ""


OURS = "mla-opt"


def points(
    heads: Sequence[int] = HEADS, keys: Sequence[int] = KEYS, batches: Sequence[int] = BATCHES
) -> list[Point]:
    """Every fourth by size, the largest first, then what lies between.

    So a run that is cut short has a bit of all, and of what the targets are about.
    """
    every = [Point(h, t, b) for h, t, b in itertools.product(heads, keys, batches)]
    largest = sorted(every, key=lambda point: (point.cache_bytes, point.heads), reverse=True)
    return [point for start in range(4) for point in largest[start::4]]


def measure(device: Device, side: int = ceilings.SIDE, size: int = ceilings.COPY_BYTES) -> Rates:
    return Rates(ceilings.copy_rate(device, size), ceilings.product_rate(device, side))


def run(
    device: Device,
    library: CudaLibrary,
    wanted: Sequence[Point],
    until: float,
    others: Mapping[str, peers.Prepare],
    turns: int = TURNS,
) -> Iterator[Row]:
    """Rows of every point, ours and the peers' in turns, until the clock says ``until``."""
    failures: Counter[str] = Counter()
    for point in wanted:
        if time.monotonic() > until:
            yield Row(OURS, point, None, "no time left")
            continue
        copies = copies_for(device, point)
        if not copies:
            yield Row(OURS, point, None, "not enough memory")
            continue
        yield _ours(device, library, point, copies, turns)
        for name, prepare in others.items():
            if failures[name] >= MOST_FAILURES or time.monotonic() > until:
                continue
            begun = time.monotonic()
            row = _peer(name, prepare, point, copies, turns)
            if row.timing is None and "memory" not in row.note:
                slow = time.monotonic() - begun > LONGEST_FAILURE
                failures[name] += MOST_FAILURES if slow else 1
            yield row


def _ours(device: Device, library: CudaLibrary, point: Point, copies: int, turns: int) -> Row:
    try:
        step = Step(device, library, point, copies)
        return Row(OURS, point, step.time(turns), loads="TMA" if step.in_bulk else "cp.async")
    except DriverError as error:
        return Row(OURS, point, None, str(error))


def _peer(name: str, prepare: peers.Prepare, point: Point, copies: int, turns: int) -> Row:
    try:
        return Row(name, point, peers.time_step(prepare, point, copies, turns))
    except Exception as error:  # whatever a package that we do not know raises
        return Row(name, point, None, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def to_json(
    rows: Sequence[Row], rates: Rates | None, absent: Mapping[str, str]
) -> dict[str, object]:
    return {
        "rates": None if rates is None else asdict(rates),
        "rows": [asdict(row) for row in rows],
        "absent": dict(absent),
    }
