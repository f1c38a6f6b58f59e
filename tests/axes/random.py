"""Random models, optimized without verification: each is equal, or refused.

    python -m tests.axes.random --count 100000 [--seed 0] [--jobs 2] [--mutated | --unmutated]
    python -m tests.axes.random --survey | --styles
    python -m tests.axes.random --plan "Plan(mask='boolean', mutations=('value t reversed 1000',))"

Prints how many were equal, refused, wrong and not runnable, why plain models were refused, and the
plainest plan of each kind of fault. Exits with 1 if there is one. ``--survey`` tells what becomes
of every single choice instead, ``--styles`` of the named ways of writing, ``--plan`` of one plan.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import hypothesis

from tests.axes.drawing import ASKED, asked, kind_of, outcome, plans, smallest, written
from tests.axes.harness import Outcome
from tests.axes.plan import CHOICES, Plan, settled
from tests.axes.styles import OTHERS, PUBLISHED

CHUNK = 250
SHOWN = 40
Case = tuple[Plan, str, Outcome]


@dataclass
class Tally:
    """What became of the models so far."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, ...], Case] = field(default_factory=dict)
    faulty: int = 0

    def add(self, plan: Plan, word: str, found: Outcome) -> None:
        """Count one model."""
        kind = "mutated" if plan.mutations else "unmutated"
        self.outcomes[kind, found.status] += 1
        if kind == "unmutated" and found.status == "refused":
            self.codes[", ".join(sorted(set(found.codes))) or "nothing seen"] += 1
        if found.wrong:
            self.faulty += 1
            self.faults.setdefault(_signature(plan, found), (plan, word, found))

    def merge(self, other: Tally) -> None:
        """Count what another process has counted."""
        self.outcomes += other.outcomes
        self.codes += other.codes
        self.faulty += other.faulty
        for key, case in other.faults.items():
            self.faults.setdefault(key, case)


def _signature(plan: Plan, found: Outcome) -> tuple[str, ...]:
    """What tells one kind of fault from another before it is made plain."""
    points = sorted({" ".join(each.split()[:3:2]) for each in plan.mutations})
    return (found.status, kind_of(found), *points)


def drawn(seed: int, count: int, mutated: bool | None, word: str | None) -> Tally:
    """Draw and judge some models; the same ones for a seed."""
    tally = Tally()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(plans(mutated=mutated), asked())
    def judge(plan: Plan, asked_for: str) -> None:
        tally.add(plan, word or asked_for, outcome(plan, word or asked_for))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge()
    return tally


def many(count: int, seed: int, jobs: int, mutated: bool | None, word: str | None) -> Tally:
    """Draw in chunks, in processes of their own, and tell how it goes."""
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    arguments = [(seed * 10**6 + at, size, mutated, word) for at, size in enumerate(sizes)]
    tally, start, done = Tally(), time.perf_counter(), 0
    for size, each in zip(sizes, _run(arguments, jobs)):
        tally.merge(each)
        done += size
        pace = 60 * done / (time.perf_counter() - start)
        if sys.stderr.isatty() or done % (20 * CHUNK) == 0:
            print(f"{done} of {count}, {tally.faulty} faults, {pace:.0f} a minute", file=sys.stderr)
    return tally


def _run(arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Tally]:
    if jobs == 1:
        yield from (drawn(*each) for each in arguments)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(drawn, *zip(*arguments))


def report(tally: Tally) -> None:
    """Say what was found, faults made plain."""
    for (kind, status), number in sorted(tally.outcomes.items()):
        print(f"{kind:10s} {status:13s} {number}")
    print("\nunmutated models refused, by code:")
    for code, number in tally.codes.most_common():
        print(f"  {number:6d} {code}")
    if tally.faults:
        print(f"\n{tally.faulty} faults of {len(tally.faults)} kinds, the plainest of each:")
    seen: set[str] = set()
    for plan, word, found in list(tally.faults.values())[:SHOWN]:
        plan, word, found = smallest(plan, word, found)
        if (told := f"{plan.told()} asked {word}") not in seen:
            seen.add(told)
            print(f"  {told}\n      {_said(found)}")


def _said(found: Outcome) -> str:
    codes = ", ".join(found.codes)
    text = f"{found.status} [{codes}] matched {found.matched}"
    return f"{text} error {found.error:.1e} {found.where[:160]}"


def survey(word: str) -> Tally:
    """What becomes of each choice alone."""
    plans_by_name = {
        f"{name} {choice}": settled(replace(Plan(), **{name: choice}))
        for name, choices in CHOICES.items()
        for choice in choices
    }
    return listed(plans_by_name, word)


def listed(named: Mapping[str, Plan], word: str) -> Tally:
    """What becomes of each plan, a line each."""
    tally = Tally()
    for name, plan in named.items():
        found = outcome(plan, word)
        tally.add(plan, word, found)
        print(f"{name:31s} {_said(found)}", flush=True)
    print(", ".join(f"{count} {status}" for (_, status), count in tally.outcomes.items()))
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--mutated", action="store_true", default=None)
    parser.add_argument("--unmutated", dest="mutated", action="store_false")
    parser.add_argument("--asked", choices=list(ASKED), help="of every model; else drawn")
    parser.add_argument("--survey", action="store_true")
    parser.add_argument("--styles", action="store_true")
    parser.add_argument("--plan", help="one plan, as this command prints them")
    parser.add_argument("--write", metavar="PATH", help="with --plan: the model, as ONNX")
    given = parser.parse_args(arguments)
    if given.plan:
        plan = settled(eval(given.plan, {"Plan": Plan}))
        if given.write:
            written(plan, given.write)
        found = outcome(plan, given.asked or "nothing")
        print(_said(found))
        return int(found.wrong)
    if given.survey:
        return int(survey(given.asked or "nothing").faulty > 0)
    if given.styles:
        return int(listed({**PUBLISHED, **OTHERS}, given.asked or "nothing").faulty > 0)
    tally = many(given.count, given.seed, given.jobs, given.mutated, given.asked)
    report(tally)
    return int(tally.faulty > 0)


if __name__ == "__main__":
    raise SystemExit(main())
