from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from mla_opt import passes
from mla_opt.errors import InputError, PassError, Refusal
from mla_opt.options import Options
from mla_opt.pipeline import Pass, PassResult, Pipeline
from tests.graphs.latent_block import Block
from tests.labels import label
from tests.passes.harness import assert_generates_same, assert_same, check, graph_of


@dataclass(frozen=True)
class Named(Pass):
    """Notes what is called, and fails where it is told to."""

    name: ClassVar[str] = "named"
    calls: list[str] = field(default_factory=list)
    fails: str = ""
    error: type[Exception] = PassError

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails:
            raise self.error(f"{what} is broken")

    def requires(self, graph: Any) -> None:
        self._call("requires")

    def run(self, graph: Any) -> PassResult:
        self._call("run")
        return PassResult(matched=2, rewritten=1, refusals=(Refusal("s", "c", "r"),), notes=("n",))

    def ensures(self, graph: Any) -> None:
        self._call("ensures")


class Other(Named):
    name: ClassVar[str] = "other"


def test_conditions_are_checked_around_the_pass():
    step = Named()
    (record,) = Pipeline([step]).run(graph_of(Block()))
    assert step.calls == ["requires", "run", "ensures"]
    assert record.name == "named"
    assert (record.result.matched, record.result.rewritten) == (2, 1)
    assert record.seconds >= 0


def test_passes_run_in_order_and_are_watched():
    events = []

    def watch(place, total, step, record, graph):
        events.append((place, total, step.name, record and record.name))

    graph = graph_of(Block())
    records = Pipeline([Named(), Other()]).run(graph, watch)
    assert [record.name for record in records] == ["named", "other"]
    assert events == [
        (0, 2, "named", None),
        (0, 2, "named", "named"),
        (1, 2, "other", None),
        (1, 2, "other", "other"),
    ]


@pytest.mark.parametrize("moment", ["requires", "run", "ensures"])
def test_an_error_says_which_pass_failed_after_which(moment):
    steps = [Named(), Named(), Other(fails=moment)]
    with pytest.raises(PassError, match=f"^pass other after named, named: {moment} is broken$"):
        Pipeline(steps).run(graph_of(Block()))


def test_the_first_pass_fails_after_none():
    with pytest.raises(PassError, match=r"^pass named: run is broken$"):
        Pipeline([Named(fails="run")]).run(graph_of(Block()))


def test_errors_of_ours_keep_their_type():
    with pytest.raises(InputError, match="pass named: run is broken"):
        Pipeline([Named(fails="run", error=InputError)]).run(graph_of(Block()))


def test_any_other_error_is_a_defect_of_the_pass():
    with pytest.raises(
        PassError, match="pass named failed: ZeroDivisionError: run is broken"
    ) as error:
        Pipeline([Named(fails="run", error=ZeroDivisionError)]).run(graph_of(Block()))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_nothing_runs_after_a_failure():
    last = Other()
    with pytest.raises(PassError):
        Pipeline([Named(fails="ensures"), last]).run(graph_of(Block()))
    assert last.calls == []


# The whole pipeline, pass by pass

WHOLE = [
    ({}, {}),
    ({"cache": "expanded", "keys": "scatter", "bias": "computed"}, {}),
    ({"cache": "expanded", "rope": 0}, {"cache": "static"}),
    ({"layers": 2, "sink": True, "bias": "both", "guarded": True}, {"target": "portable"}),
    ({"layers": 2, "order": tuple(reversed(range(12)))}, {"cache": "packed", "absorb": "fold"}),
    ({"bias": "computed", "mask_from": "cache"}, {"cache": "static:32", "target": "portable"}),
    ({"core": "fused", "opset": 24, "bias": "boolean"}, {"prefill": "expanded"}),
    ({"storage": "gemm", "row_rank": 3}, {"absorb": "none"}),
]


@pytest.mark.parametrize(("block", "options"), WHOLE, ids=label)
def test_a_graph_is_valid_before_and_after_every_pass(block, options):
    block = Block(**block)
    graph = graph_of(block)
    watched = []

    def watch(place, total, step, record, graph):
        check(graph.model)
        watched.append(step.name)

    settled = {"absorb": "factored", **options}
    Options(**settled).pipeline().run(graph, watch)
    assert len(watched) == 2 * len(Options(**settled).pipeline().passes)
    assert len(graph.sites) == block.layers
    assert_generates_same(block, graph.model)


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"batch": 2},
        {"batch": 1, "query_len": 1},
        {"batch": 2, "query_len": 4, "past_len": 8},
        {"query_len": 1, "bias": "computed", "mask_from": "scores"},
        {"dtype": "float16"},
        {"opset": 14},
        {"opset": 23, "core": "fused", "bias": None, "causal": True, "cache": "none"},
    ],
    ids=label,
)
def test_sizes_types_and_versions(block):
    block = Block(**block)
    graph = graph_of(block)
    Options().pipeline().run(graph)
    query = block.query_len if isinstance(block.query_len, int) else 5
    past = block.past_len if isinstance(block.past_len, int) else 6
    tolerance = 1e-2 if block.dtype == "float16" else 1e-5
    assert_same(
        block,
        graph.model,
        sizes=((2 if block.batch != 1 else 1, query, past),),
        tolerance=tolerance,
    )


def test_a_model_without_latent_attention_stays_as_it_is():
    block = Block(layers=0)
    graph = graph_of(block)
    before = graph.text()
    records = Options().pipeline().run(graph)
    assert graph.text() == before
    assert not any(record.result.rewritten for record in records)


def test_what_is_refused_stays_as_it_is_beside_what_is_not():
    """The second layer is a look-alike."""

    def odd(tape, value):
        return tape("Tanh", value) if tape.layer == 1 else value

    block = Block(layers=2, edits={"value": odd})
    graph = graph_of(block)
    Options(absorb="factored").pipeline().run(graph)
    names = [node.outputs[0].name for node in graph.model.graph]
    assert "context_1" in names
    assert names.count("context_1/replaced") == 0
    kept = next(n for n in graph.model.graph if n.outputs[0].name == "context_1")
    assert kept.op_type == "MatMul"
    assert kept.name.startswith("node_")
    assert_same(block, graph.model)


def test_every_pass_has_a_name_and_says_what_it_does():
    for name, load in passes.available().items():
        kind = load()
        assert kind.name == name
        assert kind.__doc__
        assert issubclass(kind, Pass)
