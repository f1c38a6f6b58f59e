"""Buffers written by position, in all ways that are known, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, Outcome, equal_or_refused
from tests.axes.model import CACHED, CAPACITY
from tests.axes.plan import CHOICES, Plan, settled
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])
PUTS = CHOICES["put"]
LAYOUTS = tuple(CACHED["expanded"])
SCATTERS = ("ScatterND", "ScatterElements", "TensorScatter", "CtxScatter")


def found(model: onnx.ModelProto, word: str = "nothing") -> Outcome:
    return equal_or_refused(model, sizes=SMALL, **ASKED[word])


@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("put", PUTS)
def test_keys_and_values_become_latent_rows(put: str, axes: str) -> None:
    model = build(settled(Plan(cache="static_expanded", cache_axes=axes, put=put)))
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


@pytest.mark.parametrize("cache", ["static", "static_joint"])
@pytest.mark.parametrize("put", PUTS)
def test_latent_rows_are_packed(put: str, cache: str) -> None:
    axes = LAYOUTS[PUTS.index(put) % len(LAYOUTS)]
    model = build(settled(Plan(cache=cache, cache_axes=axes, put=put)))
    outcome = found(model, "packed")
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


@pytest.mark.parametrize("put", ["start", "elements_each", "rows", "context"])
def test_the_widths_of_released_models(put: str) -> None:
    plan = Plan(size="real", cache="static_expanded", cache_axes="heads", put=put)
    outcome = equal_or_refused(build(settled(plan)), sizes=SMALL[:1])
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


# What only looks like it


def scatters(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in SCATTERS]


def before(model: onnx.ModelProto, node: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes in front of one."""
    place = list(model.graph.node).index(node)
    for each in reversed(nodes):
        model.graph.node.insert(place, each)


def stored(model: onnx.ModelProto, name: str, *numbers: int) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return name


def values_elsewhere(model: onnx.ModelProto) -> None:
    """Values one place further than keys."""
    last = scatters(model)[-1]
    at = 2 if last.op_type == "TensorScatter" else 1
    added = helper.make_node("Add", [last.input[at], stored(model, "one_more", 1)], ["further"])
    before(model, last, added)
    last.input[at] = "further"


def values_added(model: onnx.ModelProto) -> None:
    """Values added to those that are there."""
    scatters(model)[-1].attribute.append(helper.make_attribute("reduction", "add"))


def values_turned(model: onnx.ModelProto) -> None:
    """New values in reverse."""
    last = scatters(model)[-1]
    at, axis = {"ScatterND": (2, 0), "TensorScatter": (1, 1), "ScatterElements": (2, 2)}[
        last.op_type
    ]
    numbers = (-1, -(1 << 60), axis, -1)
    bounds = [stored(model, f"turned_{place}", each) for place, each in enumerate(numbers)]
    before(model, last, helper.make_node("Slice", [last.input[at], *bounds], ["turned"]))
    last.input[at] = "turned"


def read_of(model: onnx.ModelProto, node: onnx.NodeProto, make: Callable[[str], str]) -> None:
    """Let the readers of what a node makes read something else; the output stays."""
    readers = [each for each in model.graph.node if node.output[0] in each.input]
    place = list(model.graph.node).index(node)
    behind = model.graph.node[place + 1 :]
    del model.graph.node[place + 1 :]
    other = make(node.output[0])
    model.graph.node.extend(behind)
    for reader in readers:
        for each in model.graph.node:
            if each.output == reader.output:
                each.input[:] = [other if n == node.output[0] else n for n in each.input]


def values_rolled(model: onnx.ModelProto) -> None:
    """The first row of the values is read last."""

    def rolled(name: str) -> str:
        one, end, two = stored(model, "one_row", 1), stored(model, "to_end", 1 << 60), 2
        axis, zero = stored(model, "rows_axis", two), stored(model, "from_zero", 0)
        model.graph.node.extend(
            [
                helper.make_node("Slice", [name, one, end, axis], ["later"]),
                helper.make_node("Slice", [name, zero, one, axis], ["sooner"]),
                helper.make_node("Concat", ["later", "sooner"], ["rolled"], axis=two),
            ]
        )
        return "rolled"

    read_of(model, scatters(model)[-1], rolled)


def values_windowed(model: onnx.ModelProto) -> None:
    """The first rows of the values are read as zeros."""

    def windowed(name: str) -> str:
        two, axis = stored(model, "two_rows", 2), stored(model, "rows_axis", 2)
        end, pads = stored(model, "to_end", 1 << 60), stored(model, "front", 0, 0, 2, 0, 0, 0, 0, 0)
        model.graph.node.extend(
            [
                helper.make_node("Slice", [name, two, end, axis], ["rest"]),
                helper.make_node("Pad", ["rest", pads], ["windowed"]),
            ]
        )
        return "windowed"

    read_of(model, scatters(model)[-1], windowed)


def other_axis(model: onnx.ModelProto) -> None:
    """Values written along the axis of their width."""
    last = scatters(model)[-1]
    for attribute in last.attribute:
        if attribute.name == "axis":
            attribute.i = 3


def around(model: onnx.ModelProto) -> None:
    """Rows that begin again at the front where the buffer ends."""
    for node in scatters(model):
        node.attribute.append(helper.make_attribute("mode", "circular"))


def places_of_heads(model: onnx.ModelProto) -> None:
    """Each head has its rows one place further than the one before."""
    heads = 3
    for number, node in enumerate(scatters(model)):
        numbers = np.arange(heads).reshape(1, heads, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(numbers, f"of_head_{number}"))
        added = helper.make_node("Add", [node.input[1], f"of_head_{number}"], [f"by_{number}"])
        before(model, node, added)
        node.input[1] = f"by_{number}"


def everything_seen(model: onnx.ModelProto) -> None:
    """A mask that lets rows through that nothing was written to: they are zeros, in both."""
    for node in model.graph.node:
        if node.op_type == "LessOrEqual":
            most = np.array(1 << 40, np.int64)
            model.graph.initializer.append(numpy_helper.from_array(most, "never_there"))
            before(model, node, helper.make_node("Add", [node.input[1], "never_there"], ["far"]))
            node.input[1] = "far"
            return


LOOKALIKES: dict[str, tuple[Callable[[onnx.ModelProto], None], tuple[str, ...]]] = {
    "values elsewhere": (values_elsewhere, ("list", "start", "elements", "rows")),
    "values added": (values_added, ("list", "elements")),
    "values turned": (values_turned, ("list", "elements", "rows")),
    "values rolled": (values_rolled, ("elements", "context")),
    "values windowed": (values_windowed, ("elements", "context")),
    "another axis": (other_axis, ("elements",)),
    "around": (around, ("rows",)),
    "places of heads": (places_of_heads, ("elements",)),
    "everything seen": (everything_seen, ("list", "elements", "rows")),
}


@pytest.mark.parametrize(
    ("name", "put"), [(name, put) for name, (_, puts) in LOOKALIKES.items() for put in puts]
)
def test_what_only_looks_like_it_is_equal_or_refused(name: str, put: str) -> None:
    model = build(settled(Plan(cache="static_expanded", cache_axes="heads", put=put)))
    LOOKALIKES[name][0](model)
    outcome = found(model)
    if name == "everything seen":
        assert (outcome.status, outcome.matched) == ("equal", 1), outcome
    else:
        assert outcome.status == "refused", outcome
        assert outcome.codes


def test_the_local_function_is_put_in_the_place_of_its_call() -> None:
    model = build(settled(Plan(cache="static", put="context")))
    assert {each.name for each in model.functions} == {"CtxScatter"}
    assert found(model).matched == 1


# Buffers of which the rows up to a computed end are read


def end_of_rows(model: onnx.ModelProto) -> str:
    """Where the new rows end, of an input that says where they are put; made in front of all."""
    named = {each.name for each in model.graph.input}
    (given,) = named & {"start_pos", "cache_position", "position_ids", "write_start"}
    one, nodes = stored(model, "one_further", 1), []
    if given in ("start_pos", "write_start"):
        nodes += [
            helper.make_node("Shape", ["x"], ["count"], start=1, end=2),
            helper.make_node("Add", [given, "count"], ["end_of_each"]),
            helper.make_node("ReduceMax", ["end_of_each"], ["end_of_all"], keepdims=0),
        ]
    else:
        nodes += [
            helper.make_node("ReduceMax", [given], ["last"], keepdims=0),
            helper.make_node("Add", ["last", one], ["end_of_all"]),
        ]
    nodes.append(helper.make_node("Reshape", ["end_of_all", one_place(model)], ["end"]))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return "end"


def one_place(model: onnx.ModelProto) -> str:
    return stored(model, "one_place", -1)


def sliced(model: onnx.ModelProto, name: str, axis: int, end: str, begin: int = 0) -> None:
    """Let what reads a value read a slice of it; outputs stay."""
    (at,) = (place for place, each in enumerate(model.graph.node) if name in each.output)
    bounds = (stored(model, f"{name}_begin", begin), end, stored(model, f"{name}_axis", axis))
    for node in model.graph.node:
        node.input[:] = [f"{name}_front" if each == name else each for each in node.input]
    cut = helper.make_node("Slice", [name, *bounds], [f"{name}_front"])
    model.graph.node.insert(at + 1, cut)


def read_to_the_end(model: onnx.ModelProto, axes: str, cache: str = "static_expanded") -> str:
    """Let the attention read the rows that there are, and mask those."""
    end, place = (
        end_of_rows(model),
        CACHED[cache.split("_")[-1]][axes].replace("{}", "w").index("t"),
    )
    for each in [each.name for each in model.graph.output if each.name.startswith("present")]:
        sliced(model, each, place, end)
    for node in [each for each in model.graph.node if each.op_type == "LessOrEqual"]:
        sliced(model, node.output[0], -1, end)
    return end


@pytest.mark.parametrize("axes", [axes for axes in LAYOUTS if axes != "flat"])
@pytest.mark.parametrize("put", ["list", "start", "each", "elements", "rows"])
def test_rows_up_to_a_computed_end(put: str, axes: str) -> None:
    model = build(settled(Plan(cache="static_expanded", cache_axes=axes, put=put)))
    read_to_the_end(model, axes)
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


@pytest.mark.parametrize("cache", ["static", "static_joint"])
@pytest.mark.parametrize("absorbed", ["two_products", "one_product"])
@pytest.mark.parametrize("word", ["nothing", "packed"])
def test_latent_rows_up_to_a_computed_end(cache: str, absorbed: str, word: str) -> None:
    plan = Plan(cache=cache, cache_axes="tokens", put="start", absorbed=absorbed)
    model = build(settled(plan))
    read_to_the_end(model, "tokens", "latent")
    outcome = found(model, word)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


@pytest.mark.parametrize("put", ["list", "each"])
def test_an_end_at_the_widths_of_released_models(put: str) -> None:
    model = build(settled(Plan(size="real", cache="static_expanded", put=put)))
    read_to_the_end(model, "heads")
    outcome = equal_or_refused(model, sizes=SMALL[:1])
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


def counted_from_the_back(model: onnx.ModelProto, end: str) -> None:
    """All but as many rows as there are not: the same rows, by a number below zero."""
    shift_end(model, end, -CAPACITY)


def beyond_the_buffer(model: onnx.ModelProto, end: str) -> None:
    """An end further than the last row: all are read."""
    shift_end(model, end, 5000)


def sooner(model: onnx.ModelProto, end: str) -> None:
    """One row less than there are."""
    shift_end(model, end, -1)


def shift_end(model: onnx.ModelProto, end: str, by: int) -> None:
    made = next(node for node in model.graph.node if end in node.output)
    made.output[0] = "unshifted"
    place = list(model.graph.node).index(made)
    add = helper.make_node("Add", ["unshifted", stored(model, "shift", by)], [end])
    model.graph.node.insert(place + 1, add)


def counted_by_shape(model: onnx.ModelProto, end: str) -> None:
    """The mask has as many columns as rows were read, by the shape of those."""
    keys, mask = (
        "present.0.key_front",
        next(
            node
            for node in model.graph.node
            if node.output[0].startswith("lessorequal") and node.op_type == "Slice"
        ),
    )
    before(
        model,
        mask,
        helper.make_node("Shape", [keys], ["rows_read"], start=2, end=3),
    )
    mask.input[2] = "rows_read"


ENDS = (counted_from_the_back, beyond_the_buffer, sooner, counted_by_shape)


@pytest.mark.parametrize("change", ENDS)
@pytest.mark.parametrize("put", ["list", "each", "elements"])
def test_ends_of_every_kind(change: Callable[[onnx.ModelProto, str], None], put: str) -> None:
    model = build(settled(Plan(cache="static_expanded", cache_axes="heads", put=put)))
    change(model, read_to_the_end(model, "heads"))
    outcome = found(model)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1)


def cut_at_the_front(model: onnx.ModelProto, *names: str) -> None:
    """Rows from the second on, as many as before."""
    for node in list(model.graph.node):
        if node.op_type == "Slice" and node.input[0] in names:
            node.input[1] = stored(model, f"{node.input[0]}_second", 1)
            further = helper.make_node(
                "Add", [node.input[2], node.input[1]], [f"{node.input[0]}_further"]
            )
            before(model, node, further)
            node.input[2] = further.output[0]


def another_buffer(model: onnx.ModelProto) -> None:
    """Values are read of what was there before new ones were written."""
    for node in model.graph.node:
        if node.op_type == "Slice" and node.input[0] == "present.0.value":
            node.input[0] = "past.0.value"


NOT_THE_FRONT: dict[str, Callable[[onnx.ModelProto], None]] = {
    "values from the second row on": lambda model: cut_at_the_front(model, "present.0.value"),
    "both from the second row on": lambda model: cut_at_the_front(
        model, "present.0.key", "present.0.value"
    ),
    "values of the past": another_buffer,
}


@pytest.mark.parametrize("name", NOT_THE_FRONT)
@pytest.mark.parametrize("put", ["list", "elements"])
def test_rows_that_are_not_those_up_to_an_end_are_refused(name: str, put: str) -> None:
    model = build(settled(Plan(cache="static_expanded", cache_axes="heads", put=put)))
    read_to_the_end(model, "heads")
    NOT_THE_FRONT[name](model)
    outcome = found(model)
    assert outcome.status == "refused", outcome
    assert outcome.codes


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_other_axes_up_to_an_end_are_refused(axis: int) -> None:
    """Sequences, heads and numbers, up to where the new rows end: all of them, or no model."""
    model = build(settled(Plan(cache="static_expanded", cache_axes="heads", put="list")))
    end = end_of_rows(model)
    for name in ("present.0.key", "present.0.value"):
        sliced(model, name, axis, end)
    outcome = found(model)
    assert (outcome.status, outcome.codes) == ("refused", ("tokens_apart",))
