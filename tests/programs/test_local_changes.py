"""Changes in place become values; the numbers stay."""

from __future__ import annotations

import pytest
import torch

from mla_opt.programs.functionalize import changes
from mla_opt.programs.local_changes import settle_changes


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
    ChangesItsInput: (torch.randn(3, 4), torch.randn(3, 2)),
    UnknownView: (torch.randn(3, 4),),
}


def graph_of(kind):
    return torch.export.export(kind(), INPUTS[kind]).graph_module


@pytest.mark.parametrize("kind", [Views, Chained])
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


def test_views_of_another_kind_are_left_alone():
    module = graph_of(UnknownView)
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
