"""Changes in place become values; the numbers stay."""

from __future__ import annotations

import pytest
import torch

from mla_opt.programs.functionalize import changes
from mla_opt.programs.local_changes import settle_changes
from mla_opt.programs.settled_program import settled


class Views(torch.nn.Module):
    def forward(self, x, y):
        whole = x.new_empty(x.shape[0], 3, 10)
        whole[:, :, :6] = x
        turned = whole.transpose(1, 2)
        turned[:, 6:].copy_(y.transpose(1, 2))
        row = whole[:, 1]
        row.mul_(2.0)
        table = torch.zeros(4, 4)
        table[1] = 5.0
        table[:, 2].add_(y.sum())
        return whole + 1, turned * 2, row, table.sum(0), table[1:3] * 3


class Chained(torch.nn.Module):
    def forward(self, x):
        fresh = x + 1
        again = fresh.mul_(3.0)
        fresh.add_(1.0)
        return again * 1, fresh[:1]


class IdleCasts(torch.nn.Module):
    def forward(self, x):
        fresh = x + 1
        same, other = fresh.to("cpu"), fresh.to(torch.float64)
        same.add_(1.0)
        fresh.to(torch.float32).mul_(2.0)
        return fresh, same * 1, other


class FlaggedCast(torch.nn.Module):
    def forward(self, x):
        fresh = x + 1
        fresh.to(torch.float32, non_blocking=True).mul_(2.0)
        return fresh


class ChangesItsInput(torch.nn.Module):
    def forward(self, x, y):
        x[:, :2].copy_(y)
        return x.sum()


class UnknownView(torch.nn.Module):
    def forward(self, x):
        fresh = x + 1
        fresh.view(-1)[2:4].zero_()
        return fresh


INPUTS = {
    Views: (torch.randn(2, 3, 6), torch.randn(2, 3, 4)),
    Chained: (torch.randn(3, 4),),
    IdleCasts: (torch.randn(3, 4),),
    ChangesItsInput: (torch.randn(3, 4), torch.randn(3, 2)),
    UnknownView: (torch.randn(3, 4),),
    FlaggedCast: (torch.randn(3, 4),),
}


def graph_of(kind):
    return torch.export.export(kind(), INPUTS[kind]).graph_module


@pytest.mark.parametrize("kind", [Views, Chained, IdleCasts])
def test_local_changes_become_values(kind):
    program = torch.export.export(kind(), INPUTS[kind])
    assert changes(program.graph_module)
    assert settle_changes(program.graph) == {}
    assert not changes(program.graph_module)
    program.graph.lint()
    program.graph_module.recompile()
    expected = kind()(*(each.clone() for each in INPUTS[kind]))
    for seen, wanted in zip(program.module()(*INPUTS[kind]), expected, strict=True):
        assert torch.equal(seen, wanted)


def test_a_changed_input_is_returned_with_what_it_becomes():
    module = graph_of(ChangesItsInput)
    assert settle_changes(module.graph) == {}
    assert changes(module)
    changed = settle_changes(module.graph, of_inputs=True)
    assert [node.name for node in changed] == ["x"]
    assert not changes(module)


@pytest.mark.parametrize("kind", [UnknownView, FlaggedCast])
def test_views_of_another_kind_are_left_alone(kind):
    module = graph_of(kind)
    settle_changes(module.graph)
    assert [node.name for node in changes(module)]


def test_a_cache_that_starts_from_an_empty_tensor_is_still_a_cache():
    from mla_opt.programs.from_exported import lifted
    from mla_opt.programs.recompose import recompose

    class Joins(torch.nn.Module):
        def forward(self, past, new):
            return torch.cat([torch.cat([torch.tensor([]), past], -2), new], -2)

    program, _ = lifted(torch.export.export(Joins(), (torch.randn(2, 3, 4), torch.randn(2, 1, 4))))
    recompose(program)
    (joined,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    assert [each.name for each in joined.args[0]] == ["past", "new"]


def test_states_that_change_become_outputs_without_tracing():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.tensor(0))
            self.register_buffer("rows", torch.zeros(8, 2))

        def forward(self, x, state):
            places = torch.arange(x.shape[0]) + self.count
            self.count.to("cpu").add_(x.shape[0])
            self.rows.index_copy_(0, places, x)
            state.mul_(2.0)
            return self.rows.sum() + state.sum(), state

    given = torch.ones(3, 2), torch.ones(4)
    program = torch.export.export(Counts(), given)
    functional = settled(program)
    assert functional is not None
    assert not changes(functional.graph_module)
    assert set(functional.graph_signature.buffers_to_mutate.values()) == {"count", "rows"}
    assert set(functional.graph_signature.user_inputs_to_mutate.values()) == {"state"}
    results = [run_twice(each, given) for each in (program, functional)]
    assert results[0] == results[1]
    assert results[0][-1] == 6


def run_twice(program, given):
    """What two calls return and change; the program's buffers are as before afterwards."""
    module, said = program.module(), []
    for _ in range(2):
        state = given[1].clone()
        found, changed = module(given[0], state)
        said += [found.item(), changed.tolist(), state.tolist()]
    said.append(module.get_buffer("count").item())
    for buffer in module.buffers():
        buffer.zero_()
    return said
