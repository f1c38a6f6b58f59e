from __future__ import annotations

import onnx_ir as ir

from tests.graphs.latent_block import Block, build
from tests.passes.harness import assert_generates_same, graph_of, lines, prepared, run


def cleaned(block: Block):
    """Clean up behind passes that found a site and have not rewritten anything yet."""
    graph = prepared(block)
    (result,) = run(graph, "clean_up")
    return graph, result


def dead(tape, value):
    tape("Tanh", tape("Tanh", value), name="dead_end")
    tape("MatMul", value, tape.weight("dead.weight", 12, 5))
    return value


def test_dead_nodes_and_their_stored_tensors_go():
    graph, result = cleaned(Block(edits={"c_kv": dead}))
    assert result.notes == ("3 dead nodes removed",)
    assert not any("dead" in name for name in graph.model.graph.initializers)
    assert not any(node.outputs[0].name == "dead_end" for node in graph.model.graph)


def test_a_model_without_a_site_stays_as_it_is_dead_nodes_and_all():
    block = Block(edits={"c_kv": dead, "value": lambda tape, x: tape("Tanh", x)})
    graph = graph_of(block)
    find, result = run(graph, "find_latent_attention", "clean_up")
    assert len(find.refusals) == 1
    assert result.notes == ()
    assert lines(graph.model) == lines(build(block))


def test_what_is_needed_stays_as_it_is():
    block = Block(layers=2)
    graph, result = cleaned(block)
    assert lines(graph.model) == lines(build(block))
    assert (result.matched, result.rewritten, result.notes) == (0, 0, ())
    assert len(graph.model.graph.initializers) == len(build(block).graph.initializer)


def test_an_input_that_nothing_reads_stays():
    def unread(tape, value):
        tape.input("unread", ("B",))
        return value

    graph, _ = cleaned(Block(edits={"c_kv": unread}))
    assert "unread" in [value.name for value in graph.model.graph.inputs]


def test_metadata_and_opset_imports_stay():
    graph = prepared(Block())
    graph.model.metadata_props["who"] = "someone"
    graph.model.opset_imports["never.used"] = 3
    run(graph, "clean_up")
    assert graph.model.metadata_props["who"] == "someone"
    assert graph.model.opset_imports["never.used"] == 3


def test_nodes_are_put_in_order():
    graph = prepared(Block())
    nodes = list(graph.model.graph)
    graph.model.graph.remove(nodes[0])
    graph.model.graph.append(nodes[0])
    run(graph, "clean_up")
    made: set[ir.Value] = set()
    for node in graph.model.graph:
        for value in node.inputs:
            assert value is None or value.producer() is None or value in made
        made.update(node.outputs)


def test_a_default_that_may_be_overridden_stays():
    """A stored tensor that is also an input, though nothing reads it."""
    proto = build(Block())
    stored = proto.graph.initializer[0]
    spare = type(stored)()
    spare.CopyFrom(stored)
    spare.name = "spare"
    proto.graph.initializer.append(spare)
    info = proto.graph.input.add()
    info.name = "spare"
    info.type.tensor_type.elem_type = spare.data_type
    for size in spare.dims:
        info.type.tensor_type.shape.dim.add().dim_value = size
    graph = prepared(proto)
    run(graph, "clean_up")
    assert "spare" in graph.model.graph.initializers


FUSED = ("compress_cache", "absorb_weights", "release_shapes", "fuse_cache_append")


def test_functions_that_nothing_calls_go():
    graph = prepared(Block(), *FUSED)
    assert len(graph.model.functions) == 2
    run(graph, "clean_up")
    (function,) = graph.model.functions.values()
    assert "new_rope_cache" in [value.name for value in function.outputs]


def test_one_kind_of_call_needs_no_newer_file_format():
    graph = prepared(Block(layers=2), *FUSED, "clean_up")
    (identifier,) = graph.model.functions
    assert identifier == ("mla_opt", "LatentAttention", "")
    assert graph.model.ir_version == 8
    calls = [node for node in graph.model.graph if node.domain == "mla_opt"]
    assert {node.op_identifier() for node in calls} == {identifier}


def test_several_kinds_of_calls_have_a_name_each():
    graph = prepared(Block(layers=2, share=True), *FUSED, "clean_up")
    calls = [node for node in graph.model.graph if node.domain == "mla_opt"]
    assert {node.op_identifier() for node in calls} == set(graph.model.functions)
    names = ("LatentAttention", "LatentAttention_2")
    assert set(graph.model.functions) == {("mla_opt", name, "") for name in names}
    assert graph.model.ir_version == 8
    assert_generates_same(Block(layers=2, share=True), graph.model)


def test_twice_changes_nothing_more():
    graph, _ = cleaned(Block(edits={"c_kv": dead}))
    before = lines(graph.model)
    (result,) = run(graph, "clean_up")
    assert lines(graph.model) == before
    assert result.notes == ()
