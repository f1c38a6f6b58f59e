"""What does nothing in a program, and what only looks like it."""

from __future__ import annotations

from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from mla_opt.graphs.torch.graph import TorchGraph  # noqa: E402
from mla_opt.passes.drop_no_ops import DropNoOps  # noqa: E402
from mla_opt.programs.frontends import open_program  # noqa: E402

DYNAMIC = {0: torch.export.Dim("batch"), 2: torch.export.Dim("tokens")}
aten = torch.ops.aten

#: Rows [B, 1, T, 5]; between two operators that do something.
NOTHING = {
    "clone": lambda x: x.clone(),
    "alias": lambda x: aten.alias(x),
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: aten._to_copy(x, dtype=torch.float32),
    "slice": lambda x: aten.slice(x, 2, 0, 9223372036854775807),
    "slice size": lambda x: aten.slice(x, 2, 0, x.shape[2]),
    "view": lambda x: aten.view(x, [x.shape[0], 1, x.shape[2], 5]),
    "expand": lambda x: aten.expand(x, [x.shape[0], -1, x.shape[2], -1]),
    "add": lambda x: aten.add(x, 0),
    "sub": lambda x: aten.sub(x, 0.0),
    "mul": lambda x: aten.mul(x, 1.0),
    "div": lambda x: aten.div(x, 1),
    "dropout": lambda x: aten.dropout(x, 0.0, True),
    "dropout in inference": lambda x: aten.dropout(x, 0.5, False),
    "cat": lambda x: aten.cat([x], 2),
    "permute": lambda x: aten.permute(x, [0, 1, 2, -1]),
    "transpose": lambda x: aten.transpose(x, 2, -2),
    "pad": lambda x: aten.constant_pad_nd(x, [0, 0]),
    "split": lambda x: aten.split_with_sizes(x, [5], 3)[0],
    "repeat": lambda x: aten.repeat(x, [1, 1, 1, 1]),
    "several": lambda x: aten.cat([aten.add(x.clone(), 0)], 2),
}

SOMETHING = {
    "to": lambda x: x.to(torch.float64).float(),
    "slice": lambda x: aten.slice(x, 3, 1, 9223372036854775807),
    "view": lambda x: aten.view(x, [x.shape[0], x.shape[2], 1, 5]),
    "add": lambda x: aten.add(x, 1e-30),
    "add scaled": lambda x: aten.sub(x, 1.0, alpha=2),
    "mul": lambda x: aten.mul(x, -1.0),
    "sub": lambda x: aten.sub(torch.zeros(()), x),
    "cat": lambda x: aten.cat([x, x], 2),
    "permute": lambda x: aten.permute(aten.expand(x, [-1, 5, -1, -1]), [0, 3, 2, 1]),
    "dense": lambda x: aten.clone(aten.transpose(x, 2, 3), memory_format=torch.contiguous_format),
    "pad": lambda x: aten.constant_pad_nd(x, [1, -1]),
    "repeat": lambda x: aten.repeat(x, [1, 2, 1, 1]),
}


def graph_of(function: Any) -> TorchGraph:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    example = torch.randn(3, 1, 7, 5)
    program = torch.export.export(Model(), (example,), dynamic_shapes=(DYNAMIC,))
    return TorchGraph(open_program(program).program.clone())


def operators(graph: TorchGraph) -> list[str]:
    return [cast(Any, node.target).overloadpacket.__name__ for node in graph.nodes()]


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_nothing_is_read_past(name: str) -> None:
    graph = graph_of(lambda x: NOTHING[name](x.sin()).cos())
    DropNoOps().run(cast(Any, graph))
    left = [each for each in operators(graph) if not each.startswith("sym_")]
    assert left == ["sin", "cos"]
    graph.program.graph.lint()


@pytest.mark.parametrize("name", SOMETHING)
def test_what_does_something_stays(name: str) -> None:
    graph = graph_of(lambda x: SOMETHING[name](x.sin()).cos())
    before = operators(graph)
    DropNoOps().run(cast(Any, graph))
    assert operators(graph) == before


def test_a_copy_stays_where_a_caller_can_tell_it_from_its_input() -> None:
    """A view of the input in its place would change when the caller changes the input."""
    graph = graph_of(lambda x: (x.clone(), aten.view(x.clone(), [-1]), x.clone().sin()))
    DropNoOps().run(cast(Any, graph))
    assert operators(graph) == ["clone", "clone", "view", "sin"]


def test_an_output_keeps_its_name() -> None:
    graph = graph_of(lambda x: (x.sin().clone(), x.cos()))
    names = [each.name for each in graph.returned()]
    DropNoOps().run(cast(Any, graph))
    assert [each.name for each in graph.returned()] == names
    assert operators(graph) == ["sin", "cos"]
