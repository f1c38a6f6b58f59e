"""Random models, optimized without verification: each is equal, or refused.

    python -m tests.axes.sweep --from 0 --count 100000 [--record PATH] [--jobs 2]
    python -m tests.axes.sweep --survey | --styles
    python -m tests.axes.sweep --plan "Plan(mask='boolean', mutations=('value t reversed 1000',))"

Models have numbers, and are drawn in chunks of 100: a number means the same model wherever it is
run, as long as the generator is the same. ``--record`` keeps what became of each chunk in a file of
one line a chunk, and leaves out what stands there already, so that a sweep can be run in parts.

Prints how many were equal, refused, wrong and not runnable, why plain models were refused, and the
plainest plan of each kind of fault. Exits with 1 if there is one. ``--survey`` tells what becomes
of every single choice instead, ``--styles`` of the named ways of writing, ``--plan`` of one plan.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hypothesis

from tests.axes.drawing import ASKED, asked, kind_of, outcome, plans, smallest, written
from tests.axes.harness import Outcome
from tests.axes.plan import CHOICES, Plan, settled
from tests.axes.styles import OTHERS, PUBLISHED

CHUNK = 100
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


def drawn(chunk: int, mutated: bool | None = None, word: str | None = None) -> Tally:
    """Draw and judge the models of one chunk."""
    tally = Tally()

    @hypothesis.seed(chunk)
    @hypothesis.settings(
        max_examples=CHUNK,
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


def chunks_of(first: int, count: int) -> range:
    """The chunks that models have their numbers in."""
    return range(first // CHUNK, -(-(first + count) // CHUNK))


def many(
    chunks: Sequence[int], jobs: int, mutated: bool | None, word: str | None, record: Path | None
) -> Tally:
    """Draw chunk by chunk, in processes of their own, and tell how it goes."""
    tally, done = recorded(record, chunks)
    left = [(chunk, mutated, word) for chunk in chunks if chunk not in done]
    start = time.perf_counter()
    for count, (arguments, each) in enumerate(zip(left, _run(left, jobs)), 1):
        tally.merge(each)
        if record is not None:
            _note(record, arguments[0], each)
        pace = 60 * CHUNK * count / (time.perf_counter() - start)
        told = f"{CHUNK * count} of {CHUNK * len(left)}, {tally.faulty} faults, {pace:.0f} a minute"
        print(told, file=sys.stderr, flush=True)
    return tally


def _run(arguments: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Tally]:
    if jobs == 1:
        _collect_seldom()
        yield from (drawn(*each) for each in arguments)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_collect_seldom) as pool:
        yield from pool.map(drawn, *zip(*arguments))


def _collect_seldom() -> None:
    """Leave modules out of garbage collection: it was an eighth of a model's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# What was run before


def recorded(record: Path | None, chunks: Sequence[int]) -> tuple[Tally, set[int]]:
    """What a file says of chunks, and which it has."""
    tally, done = Tally(), set()
    lines = record.read_text().splitlines() if record is not None and record.exists() else []
    for each in map(json.loads, lines):
        if each["chunk"] in chunks and each["chunk"] not in done:
            done.add(each["chunk"])
            tally.merge(_read(each))
    return tally, done


def _note(record: Path, chunk: int, tally: Tally) -> None:
    """Append one chunk."""
    faults = [
        (_told(plan), word, found.status, found.error, found.where)
        for plan, word, found in tally.faults.values()
    ]
    line = {
        "chunk": chunk,
        "outcomes": [[*key, count] for key, count in tally.outcomes.items()],
        "codes": tally.codes,
        "faulty": tally.faulty,
        "faults": faults,
    }
    with record.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _told(plan: Plan) -> dict[str, Any]:
    usual = Plan()
    changed = (each.name for each in fields(plan))
    return {name: v for name in changed if (v := getattr(plan, name)) != getattr(usual, name)}


def _read(line: Mapping[str, Any]) -> Tally:
    tally = Tally(codes=Counter(line["codes"]), faulty=line["faulty"])
    tally.outcomes.update({(kind, status): count for kind, status, count in line["outcomes"]})
    for told, word, status, error, where in line["faults"]:
        plan = Plan(**{**told, "mutations": tuple(told.get("mutations", ()))})
        found = Outcome(status, error=error, where=where)
        tally.faults.setdefault(_signature(plan, found), (plan, word, found))
    return tally


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
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--record", type=Path, metavar="PATH")
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
    chunks = chunks_of(given.first, given.count)
    tally = many(chunks, given.jobs, given.mutated, given.asked, given.record)
    report(tally)
    return int(tally.faulty > 0)


if __name__ == "__main__":
    raise SystemExit(main())
