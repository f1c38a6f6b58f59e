"""What verification runs: how many sequences, which calls, how much padding.

Prefill then decode for one sequence and for a ragged batch, a chunk on a past that is not empty,
decode behind a long past, and a prompt long enough for the expanded branch where the optimized
model has one; as far as the static dimensions of the model allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import Limits

DECODE_STEPS = 5
#: Rows of made-up past where the model fixes none.
MADE_UP_PAST = 6


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run of calls, each fed the states of the one before.

    Attributes:
        name: what it is for.
        batch: B.
        calls: S of each call.
        padding: how many tokens at the start of each row are padding.
        initial_past: P of the first call. Above 0, the past is made up.
    """

    name: str
    batch: int
    calls: tuple[int, ...]
    padding: tuple[int, ...]
    initial_past: int = 0

    @property
    def total_len(self) -> int:
        """T of the last call."""
        return self.initial_past + sum(self.calls)

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return the first and the one-past-last token of each call."""
        start, spans = self.initial_past, []
        for length in self.calls:
            spans.append((start, start + length))
            start += length
        return tuple(spans)


@dataclass(frozen=True, slots=True)
class Room:
    """What both models leave open.

    Attributes:
        limits: sizes that one of the files fixes.
        stateful: whether there is a past at all.
        padded: whether there is a mask to say what is padding.
        capacity: most tokens that fit, if there is a bound.
        long_query: a query length that takes the expanded branch, if there is one.
        long_past: tokens of a long past, if there is room for one.
        can_make_up_past: whether both models can be given one made-up past.
    """

    limits: Limits
    stateful: bool
    padded: bool
    capacity: int | None = None
    long_query: int | None = None
    long_past: int | None = None
    can_make_up_past: bool = True


def plan(room: Room) -> tuple[Scenario, ...]:
    """Return the scenarios that fit, each once. Raises `InputError` if none does."""
    wanted = _stateful(room) if room.stateful else _stateless(room)
    fitting = (_fitted(scenario, room) for scenario in wanted)
    unique = {_shape(s): s for s in reversed([s for s in fitting if s is not None])}
    if not unique:
        past = "can" if room.can_make_up_past else "cannot"
        raise InputError(
            f"no input fits both models: the sizes they fix are {room.limits}, the cache holds"
            f" {room.capacity} tokens, and a past {past} be made up; re-export with dynamic"
            " dimensions"
        )
    return tuple(reversed(unique.values()))


def _stateful(room: Room) -> list[Scenario]:
    steps = (1,) * DECODE_STEPS
    scenarios = [
        Scenario("prompt and decode", 1, (7, *steps), (0,)),
        Scenario("ragged batch", 5, (9, *steps), (5, 2, 7, 1, 0)),
        Scenario("chunk on a past", 2, (4, 5, *steps), (3, 0)),
        Scenario("token by token", 2, (1, *steps), (0, 0)),
    ]
    if room.can_make_up_past:
        past = room.limits.past_len or _fixed_past(room.limits) or MADE_UP_PAST
        scenarios.append(Scenario("made-up past", 2, steps, (2, 0), past))
        if room.long_past is not None:
            scenarios.append(Scenario("long past", 2, (1, 3, 1), (0, 2), room.long_past))
    return scenarios + _long(room, steps)


def _fixed_past(limits: Limits) -> int:
    """P where the model fixes S and T, as one step of a fixed mask does; 0 where it does not."""
    if limits.query_len is None or limits.total_len is None:
        return 0
    return limits.total_len - limits.query_len


def _stateless(room: Room) -> list[Scenario]:
    scenarios = [
        Scenario("one sequence", 1, (8,), (0,)),
        Scenario("ragged batch", 5, (9,), (5, 2, 7, 1, 0)),
        Scenario("one token", 1, (1,), (0,)),
    ]
    return scenarios + _long(room, ())


def _long(room: Room, steps: tuple[int, ...]) -> list[Scenario]:
    if room.long_query is None:
        return []
    return [Scenario("long prompt", 2, (room.long_query, *steps), (3, 0))]


def _fitted(scenario: Scenario, room: Room) -> Scenario | None:
    """Bend ``scenario`` to the fixed sizes; ``None`` where nothing of it is left."""
    limits, calls, past = room.limits, scenario.calls, scenario.initial_past
    if limits.past_len is not None and room.stateful:
        if past != limits.past_len:
            return None
        calls = calls[:1]  # the past has grown by then, and this model takes no other
    if limits.query_len is not None:
        calls = (limits.query_len,) * len(calls)
    if limits.total_len is not None:
        calls = (limits.total_len - past,) if limits.query_len is None else calls[:1]
        if calls[0] < 1 or past + calls[0] != limits.total_len:
            return None
    calls = _within(calls, past, room.capacity)
    padding = _padding(scenario, limits.batch or scenario.batch, past + sum(calls[:1]), room)
    return replace(scenario, batch=len(padding), calls=calls, padding=padding) if calls else None


def _within(calls: tuple[int, ...], past: int, capacity: int | None) -> tuple[int, ...]:
    """Keep the calls that a cache of ``capacity`` tokens has room for."""
    kept: list[int] = []
    for length in calls:
        if capacity is not None and past + sum(kept) + length > capacity:
            break
        kept.append(length)
    return tuple(kept)


def _padding(scenario: Scenario, batch: int, first_total: int, room: Room) -> tuple[int, ...]:
    """Keep a valid token in every row of the first call, and none padded without a mask."""
    if not room.padded:
        return (0,) * batch
    rows = [scenario.padding[b % len(scenario.padding)] for b in range(batch)]
    rows[-1] = 0
    return tuple(min(pad, max(first_total - 1, 0)) for pad in rows)


def _shape(scenario: Scenario) -> tuple[object, ...]:
    return (scenario.batch, scenario.calls, scenario.padding, scenario.initial_past)
