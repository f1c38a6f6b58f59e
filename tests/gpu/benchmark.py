"""The table: time of a decode step and what share of the device it uses, beside the peers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from mla_opt.kernels.cuda_library import CudaLibrary
from tests.gpu import ceilings, peers
from tests.gpu.decode import Point, Step, Timing, copies_for
from tests.gpu.driver import Device, DriverError

HEADS = (16, 64, 128)
KEYS = (1024, 4096, 16384, 65536)
BATCHES = (1, 8, 32, 128)
TURNS = 9


@dataclass(frozen=True)
class Rates:
    """What the device does at most: bytes and operations a second; None: not measured."""

    copy: float
    product: float | None


@dataclass(frozen=True)
class Row:
    """One kernel at one point; ``timing`` is None where it did not run, and ``note`` says why."""

    kernel: str
    point: Point
    timing: Timing | None
    note: str = ""


OURS = "mla-opt"


def points(
    heads: Sequence[int] = HEADS, keys: Sequence[int] = KEYS, batches: Sequence[int] = BATCHES
) -> list[Point]:
    """Small ones first, so that a run that is cut short has a bit of all."""
    every = [Point(h, t, b) for h, t, b in itertools.product(heads, keys, batches)]
    return sorted(every, key=lambda point: (point.cache_bytes, point.heads))


def measure(device: Device, side: int = ceilings.SIDE, size: int = ceilings.COPY_BYTES) -> Rates:
    return Rates(ceilings.copy_rate(device, size), ceilings.product_rate(device, side))


def run(
    device: Device, library: CudaLibrary, wanted: Sequence[Point], until: float, turns: int = TURNS
) -> Iterator[Row]:
    """Rows of every point, ours and the peers' in turns, until the clock says ``until``."""
    others = peers.available()
    broken: set[str] = set()
    for point in wanted:
        if time.monotonic() > until:
            yield Row(OURS, point, None, "no time left")
            continue
        yield _ours(device, library, point, turns)
        for name, prepare in others.items():
            if name in broken:
                continue
            row = _peer(name, prepare, point, turns)
            if row.timing is None and "memory" not in row.note:
                broken.add(name)
            yield row


def _ours(device: Device, library: CudaLibrary, point: Point, turns: int) -> Row:
    copies = copies_for(device, point)
    if not copies:
        return Row(OURS, point, None, "not enough memory")
    try:
        return Row(OURS, point, Step(device, library, point, copies).time(turns))
    except DriverError as error:
        return Row(OURS, point, None, str(error))


def _peer(name: str, prepare: object, point: Point, turns: int) -> Row:
    try:
        return Row(name, point, peers.time_step(prepare, point, turns))  # type: ignore[arg-type]
    except Exception as error:  # whatever a package that we do not know raises
        return Row(name, point, None, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def line(row: Row, rates: Rates) -> str:
    """One row of the table."""
    point = row.point
    start = f"| {row.kernel} | {point.heads} | {point.keys} | {point.batch} |"
    if row.timing is None:
        return f"{start} {row.note} | | | | |"
    seconds = row.timing.median
    read, done = point.bytes / seconds, point.operations / seconds
    product = f"{done / rates.product:.0%}" if rates.product else "-"
    return (
        f"{start} {seconds * 1e6:.1f} | {read / 1e9:.0f} | {read / rates.copy:.0%}"
        f" | {done / 1e12:.0f} | {product} |"
    )


HEADER = (
    "| kernel | H | T | B | median us | GB/s | of copying | TFLOP/s | of a product |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def to_json(rows: Sequence[Row], rates: Rates) -> dict[str, object]:
    return {"rates": asdict(rates), "rows": [asdict(row) for row in rows]}


def targets(rows: Sequence[Row], rates: Rates) -> list[str]:
    """What of the targets is missed: 85 % of copying to 64 heads where the cache is large, 600
    TFLOP/s at 128 heads from 8k keys, never below 0.9 of the best peer."""
    missed = []
    for row in (row for row in rows if row.kernel == OURS and row.timing is not None):
        seconds, point = row.timing.median if row.timing else 0.0, row.point
        where = f"H {point.heads}, T {point.keys}, B {point.batch}"
        share = point.bytes / seconds / rates.copy
        if point.heads <= 64 and point.cache_bytes > 1 << 28 and share < 0.85:
            missed.append(f"{where}: {share:.0%} of copying")
        rate = point.operations / seconds / 1e12
        if point.heads == 128 and point.keys >= 8192 and point.batch >= 32 and rate < 600:
            missed.append(f"{where}: {rate:.0f} TFLOP/s")
        others = [
            other.timing.median
            for other in rows
            if other.point == point and other.kernel != OURS and other.timing is not None
        ]
        if others and min(others) < 0.9 * seconds:
            missed.append(f"{where}: {min(others) / seconds:.2f} of the best peer's speed")
    return missed
