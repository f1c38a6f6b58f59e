"""Pairs of files that someone has tampered with: metadata gives a proof hints, and no facts."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.errors import InputError
from mla_opt.verification import verifier, verify
from mla_opt.verification.verifier import fresh_seed
from tests.verify import toys

PROMPTS_ONLY = {
    "version": 1,
    "states": [],
    "past_len_input": None,
    "capacity": None,
    "prompts_only": True,
}


def say(model: onnx.ModelProto, **metadata: object) -> onnx.ModelProto:
    """The model with this and no other metadata."""
    del model.metadata_props[:]
    for key, content in metadata.items():
        model.metadata_props.add(key=f"mla_opt.{key}", value=json.dumps(content))
    return model


def size(model: onnx.ModelProto, of: str, axis: int) -> str:
    """Name of a value that is one size of another."""
    name = f"size_of_{of}_{axis}"
    place = numpy_helper.from_array(np.asarray(axis, np.int64), f"{name}/axis")
    model.graph.initializer.append(place)
    model.graph.node.extend(
        [helper.make_node("Shape", [of], [f"{name}/shape"]),
         helper.make_node("Gather", [f"{name}/shape", f"{name}/axis"], [name])]
    )  # fmt: skip
    return name


def where_longer(model: onnx.ModelProto, of: str, axis: int, limit: int) -> onnx.ModelProto:
    """Logits three times as large where a size is above a limit."""
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "honest"
    stored = {
        "limit": np.asarray(limit, np.int64),
        "three": np.float32(3),
        "as_it_is": np.float32(1),
    }
    for name, value in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    length = size(model, of, axis)
    model.graph.node.extend(
        [helper.make_node("Greater", [length, "limit"], ["beyond"]),
         helper.make_node("Where", ["beyond", "three", "as_it_is"], ["factor"]),
         helper.make_node("Mul", ["honest", "factor"], ["logits"])]
    )  # fmt: skip
    return model


def failed(model: onnx.ModelProto, original: onnx.ModelProto | None = None) -> bool:
    """Whether the outputs differ; what became of the controls is no matter here."""
    report = verify(original or toys.original(), model, controls=False)
    return not report.passed


@pytest.mark.parametrize(
    ("of", "axis", "limit"),
    [
        pytest.param("past_0_keys", 2, 0, id="in decode"),
        pytest.param("past_0_keys", 2, 200, id="at length"),
        pytest.param("past_0_keys", 2, 1000, id="at a length that only the graph names"),
        pytest.param("past_0_keys", 0, 4, id="for the fifth sequence"),
    ],
)
@pytest.mark.parametrize("metadata", [{}, {"interface": PROMPTS_ONLY, "sites": []}])
def test_tampered_outputs_are_seen(
    of: str, axis: int, limit: int, metadata: dict[str, object]
) -> None:
    assert failed(say(where_longer(toys.optimized(), of, axis, limit), **metadata))


def test_metadata_that_lies_about_an_honest_model_is_no_failure() -> None:
    lies = {"interface": PROMPTS_ONLY, "sites": [toys.site(prefill_threshold=10**6)]}
    assert not failed(say(toys.optimized(), **lies))


def test_a_branch_that_no_metadata_speaks_of_is_tried() -> None:
    """The branch for long prompts is tampered with, and the record of it removed."""
    model = say(toys.optimized())
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "honest"
    out = helper.make_tensor_value_info("branch_out", TensorProto.FLOAT, None)
    same, wrong = (
        helper.make_graph([helper.make_node(kind, ["honest"], ["branch_out"])], kind, [], [out])
        for kind in ("Identity", "Neg")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(15, np.int64), "long"))
    length = size(model, "honest", 1)
    model.graph.node.append(helper.make_node("Greater", [length, "long"], ["is_long"]))
    chosen = helper.make_node("If", ["is_long"], ["logits"], then_branch=wrong, else_branch=same)
    model.graph.node.append(chosen)
    assert failed(model)


def test_a_capacity_that_leaves_no_room_is_no_excuse() -> None:
    model = toys.optimized_static()
    content = json.loads(
        next(p.value for p in model.metadata_props if p.key == "mla_opt.interface")
    )
    content["capacity"] = 1
    with pytest.raises(InputError, match="says that buffers have 1 rows"):
        verify(toys.original(), say(model, interface=content))


@pytest.mark.parametrize(("past", "total"), [(0, None), (3, None), (0, 1), (3, 4)])
def test_a_past_that_became_fixed_is_no_excuse(past: int, total: int | None) -> None:
    model = toys.optimized()
    fixed = {"P": past} | ({} if total is None else {"Q": total})
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    with contextlib.suppress(InputError):
        assert failed(model)


def test_one_rounded_state_widens_nothing_that_it_does_not_reach() -> None:
    """A 16-bit state that only counts for itself, beside logits that are off by a hundredth."""
    original, model = toys.original(), where_longer(say(toys.optimized()), "past_0_keys", 2, 0)
    three = next(t for t in model.graph.initializer if t.name == "three")
    three.CopyFrom(numpy_helper.from_array(np.asarray(1.01, np.float32), "three"))
    for each, kind in ((original, TensorProto.FLOAT), (model, TensorProto.BFLOAT16)):
        make = helper.make_tensor_value_info
        each.graph.input.append(make("past_extra", kind, ["B", 1, "P", 4]))
        each.graph.output.append(make("present_extra", kind, ["B", 1, "Q", 4]))
        each.graph.node.extend(
            [helper.make_node("Cast", ["new_pe"], ["extra"], to=kind),
             helper.make_node("Concat", ["past_extra", "extra"], ["present_extra"], axis=2)]
        )  # fmt: skip
    entry = toys.state("split", ["past_extra"], ["present_extra"])
    entry["original"] = {"inputs": ["past_extra"], "outputs": ["present_extra"]}
    report = verify(original, say(model, interface=toys.interface(entry)), controls=False)
    tolerated = {output.name: output.tolerance for output in report.outputs}
    assert tolerated["logits"] < 1e-2
    assert not report.passed


def test_seeds_are_fresh_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "fresh_seed", fresh_seed)
    first, second = (verify(toys.original(), toys.optimized(), controls=False) for _ in range(2))
    assert first.seed != second.seed
    again = verify(toys.original(), toys.optimized(), controls=False, seed=first.seed)
    assert again.as_dict() == first.as_dict()
