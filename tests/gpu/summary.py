"""What is printed of the measurements: a long table for the log, a short one, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.gpu.benchmark import OURS, Rates, Row
from tests.gpu.decode import Point

HEADER = (
    "| kernel | H | T | B | keys by | median us | GB/s | of copying | TFLOP/s | of a product |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
LARGE = 1 << 28  # bytes of a cache that no L2 holds, and that takes long enough to read


def _order(point: Point) -> tuple[int, int, int]:
    return point.heads, point.keys, point.batch


def _seconds(row: Row) -> float | None:
    return None if row.timing is None else row.timing.median


def _shares(point: Point, seconds: float, rates: Rates) -> str:
    """The columns of bytes and operations."""
    read, done = point.bytes / seconds, point.operations / seconds
    product = f"{done / rates.product:.0%}" if rates.product else "-"
    return f"{read / 1e9:.0f} | {read / rates.copy:.0%} | {done / 1e12:.0f} | {product}"


def line(row: Row, rates: Rates) -> str:
    """One row of the long table."""
    point, seconds = row.point, _seconds(row)
    start = f"| {row.kernel} | {point.heads} | {point.keys} | {point.batch} | {row.loads or '-'} |"
    if seconds is None:
        return f"{start} {row.note} | | | | |"
    return f"{start} {seconds * 1e6:.1f} | {_shares(point, seconds, rates)} |"


def long_table(rows: Sequence[Row], rates: Rates) -> list[str]:
    """One line for each kernel at each point."""
    return [HEADER, *(line(row, rates) for row in sorted(rows, key=lambda r: _order(r.point)))]


def short_table(rows: Sequence[Row], rates: Rates) -> list[str]:
    """One line for each point: ours with its shares, of the peers the microseconds."""
    names = list(dict.fromkeys(row.kernel for row in rows if row.kernel != OURS))
    columns = ["H", "T", "B", "keys by", "us", "GB/s", "of copying", "TFLOP/s", "of a product"]
    columns += [f"{name} us" for name in names]
    at = {(row.kernel, row.point): row for row in rows}
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for point in sorted({row.point for row in rows}, key=_order):
        own = at.get((OURS, point))
        seconds = None if own is None else _seconds(own)
        cells = f"{point.heads} | {point.keys} | {point.batch}"
        if seconds is None:
            cells += f" | - | {'' if own is None else own.note} | | | |"
        else:
            cells += f" | {(own.loads if own else '') or '-'}"
            cells += f" | {seconds * 1e6:.1f} | {_shares(point, seconds, rates)}"
        for name in names:
            other = at.get((name, point))
            took = None if other is None else _seconds(other)
            cells += f" | {'-' if took is None else f'{took * 1e6:.1f}'}"
        lines.append(f"| {cells} |")
    return lines


@dataclass(frozen=True)
class Target:
    """What is wanted of our kernel wherever ``value`` is not None, and how numbers are shown."""

    text: str
    least: float
    value: Callable[[Row, Sequence[Row], Rates], float | None]
    show: Callable[[float], str]


def _of_copying(row: Row, rows: Sequence[Row], rates: Rates) -> float | None:
    point, seconds = row.point, _seconds(row)
    if seconds is None or point.heads > 64 or point.cache_bytes <= LARGE:
        return None
    return point.bytes / seconds / rates.copy


def _operations(row: Row, rows: Sequence[Row], rates: Rates) -> float | None:
    point, seconds = row.point, _seconds(row)
    if seconds is None or point.heads < 128 or point.keys < 8192 or point.batch < 32:
        return None
    return point.operations / seconds / 1e12


def _of_best_peer(row: Row, rows: Sequence[Row], rates: Rates) -> float | None:
    others = [_seconds(o) for o in rows if o.point == row.point and o.kernel != OURS]
    times, seconds = [took for took in others if took is not None], _seconds(row)
    return min(times) / seconds if times and seconds is not None else None


TARGETS = (
    Target("85% of copying, H <= 64, caches over 256 MiB", 0.85, _of_copying, "{:.0%}".format),
    Target(
        "600 TFLOP/s, H = 128, T >= 8k, B >= 32", 600, _operations, lambda v: f"{v:.0f} TFLOP/s"
    ),
    Target("0.9 of the best peer's speed, everywhere", 0.9, _of_best_peer, "{:.2f}".format),
)


def verdicts(rows: Sequence[Row], rates: Rates) -> list[str]:
    """A line for each target: met, missed at how many points and where by most, or not measured."""
    return [f"target {target.text}: {_found(target, rows, rates)}" for target in TARGETS]


def verdict_table(rows: Sequence[Row], rates: Rates) -> list[str]:
    """The same as a table."""
    lines = [f"| {target.text} | {_found(target, rows, rates)} |" for target in TARGETS]
    return ["| target | found |", "|---|---|", *lines]


def _found(target: Target, rows: Sequence[Row], rates: Rates) -> str:
    found = [(target.value(row, rows, rates), row.point) for row in rows if row.kernel == OURS]
    values = [(value, point) for value, point in found if value is not None]
    if not values:
        return "NOT MEASURED"
    worst, point = min(values, key=lambda pair: pair[0])
    missed = sum(value < target.least for value, _ in values)
    count = f"of {len(values)} points"
    word = f"MISSED at {missed} {count}" if missed else f"met at {len(values)} {count}"
    where = f"H {point.heads}, T {point.keys}, B {point.batch}"
    return f"{word}, the least is {target.show(worst)} ({where})"


def ceilings(rates: Rates) -> str:
    """What the device does at most."""
    product = f"{rates.product / 1e12:.0f} TFLOP/s" if rates.product else "not measured"
    return f"copying {rates.copy / 1e9:.0f} GB/s, float16 product {product}"


def summary(rows: Sequence[Row], rates: Rates | None, absent: Mapping[str, str]) -> list[str]:
    """All that is printed at the end."""
    if rates is None:
        return ["nothing was measured"]
    lines = [*short_table(rows, rates)] if rows else ["no point was measured"]
    lines.append(ceilings(rates))
    lines += [f"not there: {name} ({reason})" for name, reason in absent.items()]
    failed = {r.kernel: r.note for r in rows if r.timing is None and r.kernel != OURS}
    lines += [f"did not run everywhere: {name} ({note})" for name, note in failed.items()]
    return lines + verdicts(rows, rates)
