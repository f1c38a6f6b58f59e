from __future__ import annotations

from dataclasses import replace

import pytest

from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import Limits
from mla_opt.verification.scenarios import DECODE_STEPS, Room, plan

OPEN = Room(Limits(), stateful=True, padded=True)


def named(room, name):
    return next(scenario for scenario in plan(room) if scenario.name == name)


def test_an_open_model_gets_prefill_decode_raggedness_and_a_chunk_on_a_past():
    scenarios = plan(OPEN)
    assert {s.batch for s in scenarios} >= {1, 5}
    assert all(s.calls[-DECODE_STEPS:] == (1,) * DECODE_STEPS for s in scenarios)
    assert any(len(set(s.padding)) == 5 and s.padding[-1] == 0 for s in scenarios)
    assert any(s.calls[1] > 1 for s in scenarios)
    assert any(s.initial_past for s in scenarios)


def test_spans_follow_one_another():
    assert named(OPEN, "made-up past").spans()[:2] == ((6, 7), (7, 8))


def test_without_a_mask_nothing_is_padding():
    assert all(not any(s.padding) for s in plan(replace(OPEN, padded=False)))


def test_a_past_that_cannot_be_translated_is_not_made_up():
    assert all(not s.initial_past for s in plan(replace(OPEN, can_make_up_past=False)))


def test_a_model_without_states_gets_single_calls():
    room = replace(OPEN, stateful=False, limits=Limits(past_len=0))
    assert {(s.batch, s.calls) for s in plan(room)} == {(1, (8,)), (5, (9,)), (1, (1,))}


def test_a_decode_component_is_fed_one_token_at_a_time():
    scenarios = plan(replace(OPEN, limits=Limits(query_len=1)))
    assert all(set(s.calls) == {1} for s in scenarios)
    assert all(pad < s.initial_past + 1 for s in scenarios for pad in s.padding)


def test_a_fixed_batch_keeps_one_full_row():
    scenarios = plan(replace(OPEN, limits=Limits(batch=1)))
    assert all(s.batch == 1 and s.padding == (0,) for s in scenarios)


def test_all_sizes_fixed_leaves_one_call_on_a_made_up_past():
    (scenario,) = plan(replace(OPEN, limits=Limits(1, 1, 48, 49)))
    assert (scenario.initial_past, scenario.calls) == (48, (1,))


def test_a_fixed_past_is_gone_after_one_call():
    assert {s.calls for s in plan(replace(OPEN, limits=Limits(past_len=48)))} == {(1,)}


def test_a_fixed_total_fixes_the_query():
    scenarios = plan(replace(OPEN, limits=Limits(total_len=8)))
    assert {(s.initial_past, s.calls) for s in scenarios} == {(0, (8,)), (6, (2,))}


def test_calls_stop_at_the_capacity():
    scenarios = plan(replace(OPEN, capacity=10))
    assert max(s.total_len for s in scenarios) == 10
    assert named(replace(OPEN, capacity=10), "ragged batch").calls == (9, 1)


def test_a_long_prompt_reaches_the_expanded_branch():
    assert named(replace(OPEN, long_query=41), "long prompt").calls[0] == 41


def test_no_scenario_is_run_twice():
    scenarios = plan(replace(OPEN, limits=Limits(batch=1, query_len=1)))
    shapes = [(s.calls, s.initial_past) for s in scenarios]
    assert len(shapes) == len(set(shapes))


def test_nothing_that_fits_is_an_error():
    with pytest.raises(InputError, match="no input fits both models"):
        plan(replace(OPEN, limits=Limits(past_len=48), can_make_up_past=False))
