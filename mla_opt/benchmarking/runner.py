"""A whole run of the benchmark: both models, peers, every point, and what the machine can do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mla_opt.benchmarking import machine
from mla_opt.benchmarking.disturbance import Reading
from mla_opt.benchmarking.failures import check_memory
from mla_opt.benchmarking.limits import Load, rates
from mla_opt.benchmarking.pair import Pair
from mla_opt.benchmarking.participants import Participant, variants
from mla_opt.benchmarking.peers.catalog import Peer
from mla_opt.benchmarking.point_run import Found, PointRun, Settings
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.report import BenchReport, Measurement, MissingPeer, ParticipantReport
from mla_opt.cost_model import CostForm

Say = Callable[[str, int, int], None]


def bench(
    settings: Settings,
    peers: Sequence[Peer] = (),
    missing: Sequence[MissingPeer] = (),
    say: Say = lambda text, done, total: None,
) -> BenchReport:
    """Measure both models, and `peers` beside them.

    Raises:
        InputError: a model cannot be used or run at one of the points, or memory does not suffice.
    """
    say("reading both models", 0, 0)
    pair = Pair.of(settings.original, settings.optimized)
    ours, notes = variants(pair, settings.threads)
    for point in settings.points:
        pair.check(point)
        check_memory(ours, point)
    say("measuring the machine", 0, 0)
    rated = machine.measure(settings.threads, settings.quick)
    found = Found(missing=list(missing))
    before = Reading.now()
    with tempfile.TemporaryDirectory(prefix="mla-opt-bench-") as folder:
        for done, point in enumerate(settings.points):
            say(f"{point}", done, len(settings.points))
            PointRun(pair, settings, point, Path(folder), found).measure(ours, peers)
    everyone: tuple[Participant, ...] = (*ours, *peers)
    timed = {m.participant for m in found.measurements}
    return BenchReport(
        original=str(settings.original),
        optimized=str(settings.optimized),
        machine=rated,
        participants=tuple(
            ParticipantReport(p.name, p.kind, p.inside) for p in everyone if p.name in timed
        ),
        measurements=_with_rates(found.measurements, pair, everyone, rated),
        missing=tuple(found.missing),
        others_busy=Reading.now().others(before),
        notes=(*notes, *_notes(settings.points, pair)),
    )


def _with_rates(
    measurements: Sequence[Measurement],
    pair: Pair,
    everyone: Sequence[Participant],
    rated: machine.Machine,
) -> tuple[Measurement, ...]:
    """Add what the attention reaches, where a shorter context tells it from the rest."""
    by_name = {who.name: who for who in everyone}
    done: list[Measurement] = []
    for one in measurements:
        same = [m for m in measurements if _series(m) == _series(one)]
        near = min(same, key=lambda m: m.context)
        who = by_name[one.participant]
        form = who.form(one.query)
        reached = None
        if form is not None and near.context < one.context:
            loads = [_load(pair, form, who.cache_bytes, m) for m in (near, one)]
            reached = rates(loads[0], loads[1], rated)
        done.append(replace(one, attention=reached))
    return tuple(done)


def _series(one: Measurement) -> tuple[str, int, int]:
    return one.participant, one.batch, one.query


def _load(pair: Pair, form: CostForm, cache_bytes: int | None, one: Measurement) -> Load:
    flops, moved = pair.work(form, Point(one.context, one.batch, one.query), cache_bytes)
    return Load(flops, moved, one.min_ms)


def _notes(points: Sequence[Point], pair: Pair) -> tuple[str, ...]:
    if len({point.context for point in points}) < 2:
        return ("one context does not tell the attention from the rest of a step; give two",)
    if not pair.attentions:
        return ("no latent attention was found in the original, so its work is not known",)
    return ()
