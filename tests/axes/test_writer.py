"""The writer writes what its plans say, and every mutation is one."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.axes.drawing import MUTATIONS, plans
from tests.axes.feeding import Array, Feeds, Inputs, Size, understand
from tests.axes.harness import FEW, Runner, deviation
from tests.axes.plan import CHOICES, MEANING, Plan, plain, settled
from tests.axes.writer import build

ROUNDING = {"float32": 1e-5, "float64": 1e-5, "float16": 3e-2}
NO_CHANGE = {
    "latent b misread 0": "the axis beside the sequences is of size one",
    "k_pe b misread 0": "the axis beside the sequences is of size one",
    "probs b clipped 0": "probabilities are in the bounds",
    "sinks b clipped 0": "these sinks are in the bounds",
    "probs b absolute 0": "probabilities are positive",
}


def test_plans_have_a_field_for_every_choice() -> None:
    given = {each.name: each.default for each in fields(Plan)}
    assert set(given) == {*CHOICES, "mutations", "seed"}
    assert all(given[name] == choices[0] for name, choices in CHOICES.items())


@given(plans(mutated=False))
@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_however_it_is_written_it_computes_the_same(plan: Plan) -> None:
    assert _agrees(plan)


@pytest.mark.parametrize(
    ("name", "choice"), [(name, each) for name in CHOICES for each in CHOICES[name][1:]]
)
def test_every_choice_is_written_rightly(name: str, choice: str) -> None:
    plan = settled(Plan(**{name: choice}))
    assert _agrees(plan)
    if name not in MEANING and getattr(plan, name) == choice:
        assert plan != Plan()


def _agrees(plan: Plan) -> bool:
    """Whether a plan computes what its plain writing does, where there is no past."""
    models = [build(plan), build(plain(plan))]
    runners = [Runner(model, understand(model)) for model in models]
    for size in (Size(2, 5, 0), Size(3, 4, 0, "ragged"), Size(2, 2, 0)):
        if not runners[0].inputs.fits(size):
            continue
        feeds = [Feeds(each.inputs, size).draw() for each in runners]
        drawn = {name: array for name, array in feeds[0].items() if not name.startswith("past")}
        made = []
        for runner, feed in zip(runners, feeds):
            empty = {name: np.zeros_like(array) for name, array in feed.items() if "past" in name}
            made.append(runner.run({**feed, **drawn, **empty})["y"])
        if deviation(*made) > ROUNDING[plan.dtype]:
            return False
    return True


@pytest.mark.parametrize("cache", ["static", "static_joint", "static_expanded"])
@pytest.mark.parametrize("put", ["list", "each"])
def test_buffers_keep_what_growing_caches_keep(cache: str, put: str) -> None:
    growing = "latent" if cache == "static" else cache.removeprefix("static_")
    calls = [
        _in_calls(settled(Plan(cache=cache, put=put))),
        _in_calls(settled(Plan(cache=growing, mask="causal"))),
    ]
    assert deviation(*calls) < 1e-5


def _in_calls(plan: Plan) -> np.ndarray:
    model = build(plan)
    runner, past, states, made = Runner(model, understand(model)), 0, {}, []
    for query in (4, 1, 2):
        feed = Feeds(runner.inputs, Size(2, query, past)).draw()
        empty = {name: np.zeros_like(feed[name]) for name in feed if name.startswith("past.")}
        hidden = np.random.default_rng(query).standard_normal(feed["x"].shape)
        feed |= states or empty
        found = runner.run(feed | {"x": hidden.astype(np.float32)})
        states = {name: found[name.replace("past", "present")] for name in empty}
        made.append(found["y"])
        past += query
    return np.concatenate(made, axis=1)


def test_mutations_change_what_is_computed_at_the_sizes_of_random_models() -> None:
    _change_something(MUTATIONS[::11])


@pytest.mark.sweep
def test_all_mutations_change_what_is_computed() -> None:
    _change_something(MUTATIONS)


def _where_it_acts(mutation: str) -> Plan:
    """A plan with what a mutation needs: two latents, sinks, summed products, a written softmax."""
    if mutation.startswith("second "):
        return Plan(groups="apart")
    if mutation.startswith("sinks "):
        return Plan(sinks="some")
    if mutation.startswith(("last_key ", "product ")) or mutation == "model - subtracted 0":
        return Plan(key="two_products")
    return Plan(exponential="by_hand" if mutation in _OF_EXPONENTIALS else "softmax")


_OF_EXPONENTIALS = ("model - denominator 0", "model - maximum 0")


def _change_something(names: list[str]) -> None:
    idle = []
    for name in names:
        plan = _where_it_acts(name)
        inputs, given, expected = _unchanged(plan)
        after = Runner(build(replace(plan, mutations=(name,))), inputs)
        if not any(
            deviation(one, after.run(each)["y"]) > 1e-4 for one, each in zip(expected, given)
        ):
            idle.append(name)
    assert set(idle) <= set(NO_CHANGE)


@lru_cache
def _unchanged(plan: Plan) -> tuple[Inputs, list[dict[str, Array]], list[Array]]:
    """What a model is given at some sizes, and what it makes of that."""
    model = build(plan)
    before = Runner(model, understand(model))
    given = [Feeds(before.inputs, size).draw() for size in FEW]
    return before.inputs, given, [before.run(each)["y"] for each in given]
