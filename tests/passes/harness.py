"""What tests of passes share: run some passes, run a model, and say what changed in words.

A graph is checked before and after every pass that `run` runs: by the ONNX checker, by strict shape
inference, and for names that are made once.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from mla_opt import passes
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.ort_values import from_ort_value, to_ort_value
from mla_opt.pipeline import Pass, PassResult
from tests.graphs.latent_block import Block, build, feeds

Arrays = dict[str, np.ndarray[Any, Any]]
Step = str | Pass

#: The passes up to and with this one, without options.
FIND = ("find_latent_attention",)
EXTRACT = (*FIND, "extract_weights")


@functools.cache
def kind_of(name: str) -> Any:
    """The class of a pass; looking one up reads the metadata of all that is installed."""
    return passes.load(name)


def graph_of(source: Block | onnx.ModelProto | ir.Model) -> OnnxGraph:
    if isinstance(source, Block):
        source = build(source)
    if isinstance(source, onnx.ModelProto):
        source = ir.from_proto(source)
    return OnnxGraph(source)


def run(graph: OnnxGraph, *steps: Step) -> list[PassResult]:
    """Run passes, checking the graph around each; the pipeline's pre- and postconditions too."""
    results = []
    checked: list[str] = []
    for step in (None, *steps):
        if step is not None:
            each = kind_of(step)() if isinstance(step, str) else step
            each.requires(graph)
            results.append(each.run(graph))
            each.ensures(graph)
        written = lines(graph.model)
        if written != checked:
            check(graph.model)
        checked = written
    return results


def prepared(
    source: Block | onnx.ModelProto,
    *steps: Step,
    absorb: str = "factored",
    prefill: str = "auto",
    held: bool = False,
) -> OnnxGraph:
    """A graph with its sites found, proved and decided on, then `steps`."""
    graph = graph_of(source)
    choose = kind_of("choose_form")(absorb=absorb, prefill=prefill, held=held)
    run(graph, *EXTRACT, choose, *steps)
    return graph


def check(model: ir.Model) -> onnx.ModelProto:
    """The model as a valid proto; nodes may be out of order between passes, nothing else may."""
    assert not named_twice(model.graph.all_nodes(), model.graph.inputs)
    proto = ir.to_proto(model)
    alive = _alive(model.graph)
    kept = {node: each for each, node in zip(proto.graph.node, model.graph) if node in alive}
    ordered = [_copied(kept[node]) for node in _in_order(alive, model.graph)]
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _in_order(alive: set[ir.Node], graph: ir.Graph) -> list[ir.Node]:
    """Producers before consumers, otherwise as they come."""
    ordered: dict[ir.Node, None] = {}
    for first in graph:
        stack = [(first, False)] if first in alive else []
        open_nodes: set[ir.Node] = set()
        while stack:
            node, ready = stack.pop()
            if ready:
                ordered[node] = None
            elif node not in ordered:
                assert node not in open_nodes, f"a cycle through {node.name}"
                open_nodes.add(node)
                stack.append((node, True))
                sources = (each.producer() for each in _read(node) if each is not None)
                stack.extend((each, False) for each in sources if each in alive)
    return list(ordered)


def _alive(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that the outputs need; what branches read of the graph around them included."""
    alive: set[ir.Node] = set()
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node in alive or node.graph is not graph:
            continue
        alive.add(node)
        pending.extend(each.producer() for each in _read(node) if each is not None)
    return alive


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().outputs
            for inner in attribute.as_graph().all_nodes():
                yield from inner.inputs


def named_twice(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value]) -> list[str]:
    """Names that more than one value has."""
    made = [each.name for node in nodes for each in node.outputs]
    names = Counter([*made, *(each.name for each in inputs)])
    return [name for name, count in names.items() if count > 1 and name]


def compute(model: onnx.ModelProto | ir.Model, given: Mapping[str, Any]) -> Arrays:
    """Outputs of a model in ONNX Runtime, by name."""
    proto = check(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = {value.name: to_ort_value(given[value.name]) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(from_ort_value, session.run_with_ort_values(names, wanted))))


SIZES = ((2, 4, 3), (1, 1, 9), (1, 5, 0), (2, 23, 40))
"""B, S and P of the runs: a decode step, a prefill, and one on either side of the crossover."""


def assert_same(
    block: Block,
    after: ir.Model,
    *,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    tolerance: float = 1e-5,
) -> None:
    """The model of a block and `after` give the same outputs on the same feeds."""
    before, rewritten = build(block), check(after)
    for size in sizes:
        given = feeds(block, *size)
        expected, seen = compute(before, given), compute(rewritten, given)
        assert list(seen) == list(expected)
        for name, array in expected.items():
            assert_close(seen[name], array, tolerance, f"{name} at B, S, P = {size}")


def assert_close(seen: Any, expected: Any, tolerance: float, what: str = "") -> None:
    assert seen.shape == expected.shape, what
    assert seen.dtype == expected.dtype, what
    assert np.isfinite(expected).all(), f"{what}: the original is not finite"
    error = np.abs(seen.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    assert error <= tolerance * max(np.abs(expected).max(initial=0.0), 1.0), f"{what}: {error}"


def generate(
    model: onnx.ModelProto | ir.Model,
    block: Block,
    steps: Sequence[int] = (5, 1, 3),
    *,
    batch: int = 2,
    rows: int = 16,
) -> list[np.ndarray[Any, Any]]:
    """Call a model step by step on its own cache, whatever the layout; returns `hidden` of each.

    `rows` is the capacity of caches that are written in place.
    """
    proto = check(model) if isinstance(model, ir.Model) else model
    inputs = {value.name: value.type.tensor_type for value in proto.graph.input}
    static = "past_len" in inputs
    states = {
        name: _empty(kind, batch, rows if static else 0)
        for name, kind in inputs.items()
        if name.startswith("past") and name != "past_len"
    }
    outputs, past = [], 0
    for query in steps:
        given = feeds(block, batch, query, past, seed=past)
        given.update(states, past_len=np.full(batch, past, np.int32))
        made = compute(proto, given)
        states = {name: made[name.replace("past", "present", 1)] for name in states}
        outputs.append(made["hidden"])
        past += query
    return outputs


def _empty(kind: onnx.TypeProto.Tensor, batch: int, rows: int) -> np.ndarray[Any, Any]:
    dims = [dim.dim_value for dim in kind.shape.dim]
    dims[0], dims[-2] = batch, rows if not dims[-2] else dims[-2]
    return np.zeros(dims, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def assert_generates_same(block: Block, after: ir.Model, tolerance: float = 1e-5) -> None:
    """Call by call, each on its own cache, both models return the same."""
    expected = generate(build(block), block)
    for step, (seen, wanted) in enumerate(zip(generate(after, block), expected)):
        assert_close(seen, wanted, tolerance, f"step {step}")


# A graph in words


def lines(model: ir.Model | onnx.ModelProto) -> list[str]:
    """One line a node: what it makes, of what, and how."""
    known = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return [_line(node) for node in known.graph]


def _line(node: ir.Node) -> str:
    made = ", ".join(str(each.name) for each in node.outputs)
    read = ["" if each is None else str(each.name) for each in node.inputs]
    attributes = [
        f"{name}={each.value}"
        for name, each in sorted(node.attributes.items())
        if each.type not in (ir.AttributeType.GRAPH, ir.AttributeType.TENSOR)
    ]
    return f"{made} = {node.op_type}({', '.join([*read, *attributes])})"


def kinds(model: ir.Model | onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs in the main graph."""
    graph = model.graph
    nodes: Iterable[Any] = graph.node if isinstance(model, onnx.ModelProto) else graph
    return Counter(node.op_type for node in nodes)


def changed(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines that are gone, and those that are new."""
    old, new = set(before), set(after)
    return [x for x in before if x not in new], [x for x in after if x not in old]


def value(model: ir.Model, name: str) -> ir.Value:
    """A value of the main graph by its name."""
    for known in (*model.graph.inputs, *model.graph.initializers.values()):
        if known.name == name:
            return known
    return next(each for node in model.graph for each in node.outputs if each.name == name)


def tree(model: ir.Model, name: str) -> str:
    """The expression that the passes have put in the place of a value.

    It goes down as far as nodes that passes made; stored tensors go by the end of their name.
    """
    return _tree(value(model, name))


def _tree(known: ir.Value | None) -> str:
    if known is None:
        return "-"
    node = known.producer()
    if known.is_initializer():
        return (known.name or "").rpartition("/")[2]
    if node is None or "/mla" not in (node.name or ""):
        return str(known.name)
    place = f".{list(node.outputs).index(known)}" if len(node.outputs) > 1 else ""
    return f"{node.op_type}{place}({', '.join(_tree(each) for each in node.inputs)})"
