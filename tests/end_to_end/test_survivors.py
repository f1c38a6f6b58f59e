"""What a model carries besides its attention comes through: every name, note and odd end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

import mla_opt
from mla_opt.files.model_io import write_model
from tests.end_to_end import protos


def note(holder: Any, text: str) -> None:
    """A doc string and a metadata entry."""
    holder.doc_string = text
    entry = holder.metadata_props.add()
    entry.key, entry.value = "com.example.note", text


def decorated(plain: Path) -> onnx.ModelProto:
    """The export with everything on it that a file may carry."""
    model = onnx.load(plain)
    note(model, "made by hand")
    model.producer_name, model.producer_version = "someone", "1.2"
    model.domain, model.model_version = "com.example.models", 7
    graph = model.graph
    note(graph, "a graph")
    graph.name = "decorated"
    for value in (*graph.input, *graph.output):
        note(value, f"about {value.name}")
    for node in graph.node:
        node.doc_string = f"about {node.name}"
    graph.input.append(onnx.helper.make_tensor_value_info("temperature", 1, ["s10", 3]))
    graph.initializer.append(onnx.helper.make_tensor("offset", 1, [1], [0.5]))
    graph.node.append(onnx.helper.make_node("Add", ["logits", "offset"], ["sum"], "unrelated"))
    note(graph.node[-1], "an unrelated node")
    graph.output.append(onnx.helper.make_tensor_value_info("sum", 1, ["s10", "s70", 97]))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 3))
    return model


@pytest.fixture(scope="module", params=["onnxruntime", "portable"])
def pair(
    request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = decorated(plain)
    folder = tmp_path_factory.mktemp("decorated")
    source = folder / "decorated.onnx"
    source.write_bytes(before.SerializeToString())
    result = mla_opt.optimize(source, target=request.param)
    assert len(result.report.sites) == 2
    write_model(result.model, folder / "optimized.onnx")
    return before, onnx.load(folder / "optimized.onnx")


Pair = tuple[onnx.ModelProto, onnx.ModelProto]


def test_the_model(pair: Pair) -> None:
    before, after = pair
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        assert getattr(after, name) == getattr(before, name), name
    added = protos.properties(after).items() - protos.properties(before).items()
    assert protos.properties(after).items() >= protos.properties(before).items()
    assert {key.partition(".")[0] for key, _ in added} == {"mla_opt"}
    assert protos.opsets(after).items() >= protos.opsets(before).items()


def test_the_graph(pair: Pair) -> None:
    before, after = pair
    assert (after.graph.name, after.graph.doc_string) == ("decorated", "a graph")
    assert protos.properties(after.graph) == protos.properties(before.graph)


@pytest.mark.parametrize("side", ["input", "output"])
def test_inputs_and_outputs(pair: Pair, side: str) -> None:
    """In order, with symbols, doc strings and metadata, whether anything reads them or not."""
    before, after = (list(getattr(model.graph, side)) for model in pair)
    assert [protos.as_text(value) for value in after] == [protos.as_text(value) for value in before]
    notes = [protos.properties(value).get("com.example.note") for value in before]
    assert [protos.properties(value).get("com.example.note") for value in after] == notes


def test_nodes_that_stay(pair: Pair) -> None:
    """Not all do, but those that do say and mean what they said and meant."""
    before, after = pair
    left = {node.name: node for node in after.graph.node}
    kept = [node for node in before.graph.node if node.name in left]
    assert len(kept) > 0.6 * len(before.graph.node)
    for node in kept:
        assert protos.meaning(left[node.name]) == protos.meaning(node)
    order = [node.name for node in after.graph.node if node.name in {n.name for n in kept}]
    assert sorted(order) == sorted(node.name for node in kept)
    assert left["unrelated"] == before.graph.node[-1]


def test_stored_tensors(pair: Pair) -> None:
    """Those still there hold what they held; none is stored a second time."""
    before, after = ({t.name: t for t in model.graph.initializer} for model in pair)
    for name in before.keys() & after.keys():
        assert after[name].data_type == before[name].data_type
        assert onnx.numpy_helper.to_array(after[name]).tobytes() == (
            onnx.numpy_helper.to_array(before[name]).tobytes()
        )
    size = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in before.values())
    grown = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in after.values())
    assert grown < size + 1000


def test_an_input_with_a_symbol_of_its_own(plain: Path) -> None:
    """It says nothing of attention, and must not stand in the way of it either."""
    model = onnx.load(plain)
    model.graph.input.append(onnx.helper.make_tensor_value_info("image", 1, ["pixels", 3]))
    assert len(mla_opt.optimize(model).report.sites) == 2
