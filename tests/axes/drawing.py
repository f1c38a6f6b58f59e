"""Random plans, drawn by hypothesis: plain but for a few choices, and half of them mutated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import onnx
from hypothesis import strategies as st

from tests.axes import mutations
from tests.axes.harness import FEW, Outcome, equal_or_refused
from tests.axes.model import CAPACITY
from tests.axes.plan import CHOICES, Plan, settled
from tests.axes.writer import build

WHOLE_MODEL = (
    "order",
    "softmax_axis",
    "denominator",
    "maximum",
    "subtracted",
    "small",
    "small_k_pe",
    "counted",
    "past_returned",
    "keys_returned",
    "probs_returned",
    "query_reads",
    "values_elsewhere",
)
"""Mutations that the writer itself makes."""

ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "packed": {"cache": "packed"},
    "even": {"cache": "even"},
    "static": {"cache": f"static:{CAPACITY}"},
    "portable": {"target": "portable"},
    "factored": {"absorb": "factored", "prefill": "absorbed"},
    "expanded": {"prefill": "expanded"},
    "fold": {"absorb": "fold"},
    "fold-q": {"absorb": "fold-q"},
    "fold-o": {"absorb": "fold-o"},
    "none": {"absorb": "none"},
}
"""What is asked of the optimizer, by a word."""

MUTATIONS = [*mutations.every(), *(f"model - {kind} 0" for kind in WHOLE_MODEL)]
MOST_CHANGES = 9

NEEDED = {"sinks": {"sinks": "some"}, "second": {"groups": "apart"}}
"""What a model has to have for a mutation at a point."""


@st.composite
def plans(draw: st.DrawFn, *, mutated: bool | None = None) -> Plan:
    """A settled plan; ``mutated`` as wanted, or either."""
    names = draw(st.lists(st.sampled_from(list(CHOICES)), max_size=MOST_CHANGES, unique=True))
    changes = {name: draw(st.sampled_from(CHOICES[name])) for name in names}
    if mutated is None:
        mutated = draw(st.booleans())
    count = st.integers(1, 2) if mutated else st.just(0)
    applied = [draw(mutation()) for _ in range(draw(count))]
    for each in applied:
        changes |= NEEDED.get(each.split()[0], {})
    return settled(Plan(**changes, mutations=tuple(applied), seed=draw(st.integers(0, 99))))


@st.composite
def mutation(draw: st.DrawFn) -> str:
    """A mutation; those of the whole model are as frequent as those at one point."""
    if draw(st.integers(0, 11)) == 11:
        return f"model - {draw(st.sampled_from(WHOLE_MODEL))} 0"
    point = draw(st.sampled_from(list(mutations.POINTS)))
    return draw(st.sampled_from([each for each in MUTATIONS if each.startswith(f"{point} ")]))


def asked() -> st.SearchStrategy[str]:
    """What is asked: nothing, in every second case."""
    return st.one_of(st.just("nothing"), st.sampled_from(list(ASKED)))


def outcome(plan: Plan, word: str = "nothing") -> Outcome:
    """What becomes of the model of a plan."""
    return equal_or_refused(build(plan), sizes=FEW, seed=plan.seed, **ASKED[word])


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same fault."""
    return one.status == other.status and kind_of(one) == kind_of(other)


def kind_of(found: Outcome) -> str:
    """The fault without its numbers: what a crash is called, or how a result is wrong."""
    if found.status == "crash":
        return found.where.split(" failed: ")[-1][:60]
    return "does not run" if found.error == float("inf") else "differs"


def smallest(
    plan: Plan, word: str, found: Outcome, judge: Callable[[Plan, str], Outcome] = outcome
) -> tuple[Plan, str, Outcome]:
    """The plainest plan near ``plan`` that still has the same fault."""
    usual: Mapping[str, Any] = {each.name: each.default for each in fields(Plan)}
    if word != "nothing" and same(nearer := judge(plan, "nothing"), found):
        word, found = "nothing", nearer
    progress = True
    while progress:
        progress = False
        for simpler in _simpler(plan, usual):
            if simpler != plan and same(nearer := judge(simpler, word), found):
                plan, found, progress = simpler, nearer, True
                break
    return plan, word, found


def _simpler(plan: Plan, usual: Mapping[str, Any]) -> list[Plan]:
    """The plan with one mutation less, or one field plain."""
    kept = plan.mutations
    fewer = [replace(plan, mutations=kept[:at] + kept[at + 1 :]) for at in range(len(kept))]
    plainer = [
        settled(replace(plan, **{name: default}))
        for name, default in usual.items()
        if name != "mutations" and getattr(plan, name) != default
    ]
    return [*fewer, *(each for each in plainer if _changes(each) < _changes(plan))]


def _changes(plan: Plan) -> int:
    return sum(getattr(plan, each.name) != each.default for each in fields(Plan))


def written(plan: Plan, path: str) -> None:
    """Write the model of a plan to look at."""
    onnx.save(build(plan), path)
