"""Rows, keys and caches that more than one attention reads, or something that is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest

import mla_opt
from mla_opt.errors import InputError
from tests.axes.drawing import ASKED
from tests.axes.edits import (
    branched,
    maker,
    node,
    reader,
    replaced,
    returned,
    stored,
    taken,
    weight,
)
from tests.axes.harness import Size, equal_or_refused
from tests.axes.plan import Plan
from tests.axes.writer import build

H, N, R, V, C = 3, 5, 4, 7, 11
SIZES = (Size(2, 3, 0), Size(2, 5, 4, "ragged"), Size(3, 1, 7, "random"), Size(1, 9, 20))

Made = Callable[[], onnx.ModelProto]


def averaged(plan: Plan, value: str, shape: list[int | str]) -> onnx.ModelProto:
    """The mean over tokens of a cache, before or after a call, is returned as well."""
    model = build(plan)
    stored(model, "tokens", np.array([2]))
    model.graph.node.append(node("ReduceMean", [value, "tokens"], ["mean"], keepdims=0))
    returned(model, "mean", shape)
    return model


def masked_by_rows(plan: Plan, value: str) -> onnx.ModelProto:
    """The mask is added to by what is cached for each token."""
    model = build(plan)
    stored(model, "width", np.array([-1]))
    added = reader(model, "mask", "Add")
    replaced(
        model,
        added,
        [
            node("ReduceSum", [value, "width"], ["levels"], keepdims=1),
            node("Transpose", ["levels"], ["levels_of_keys"], perm=[0, 1, 3, 2]),
            node("Add", ["mask", "levels_of_keys"], ["mask_by_rows"]),
            node("Add", [added.input[0], "mask_by_rows"], added.output),
        ],
    )
    return model


def values_of_others(rows: str) -> onnx.ModelProto:
    """A second attention with the same cached keys, and values of its own.

    Keys and values of the first are made of ``z``, a square matrix away from ``c``, its latent.
    """
    model = build(Plan(cache="expanded", storage="separate"))
    rng = np.random.default_rng(3)
    up = reader(model, weight(model, "k_up")[0])
    latent = up.input[0]
    for name in ("k_up", "v_up"):
        reader(model, weight(model, name)[0]).input[0] = "z"
    shape = reader(model, reader(model, weight(model, "v_up")[0]).output[0]).input[1]
    stored(model, "square", rng.standard_normal((C, C)).astype(np.float32) / 3)
    stored(model, "other_up", rng.standard_normal((C, H * V)).astype(np.float32) / 3)
    square = node("MatMul", [latent, "square"], ["z"])
    replaced(model, up, [square, up])
    made = maker(model, reader(model, "present.0.key", "Transpose").output[0])
    model.graph.node.extend(
        [
            node("MatMul", [{"c": latent, "z": "z"}[rows], "other_up"], ["flat"]),
            node("Reshape", ["flat", shape], ["parted"]),
            node("Transpose", ["parted"], ["other_value"], perm=[0, 2, 1, 3]),
            node("Concat", ["past.0.other", "other_value"], ["present.0.other"], axis=2),
        ]
    )
    taken(model, "past.0.other", ["B", H, "P", V])
    returned(model, "present.0.other", ["B", H, "T", V])
    return _attended(model, made.output[0], "present.0.other")


def keys_of_others() -> onnx.ModelProto:
    """A second attention with the same cached values, and keys of its own."""
    model = build(Plan(cache="expanded", storage="separate"))
    rng = np.random.default_rng(3)
    up = reader(model, weight(model, "k_up")[0])
    shape = reader(model, up.output[0]).input[1]
    rope = maker(model, maker(model, "present.0.key").input[1]).input[1]
    stored(model, "other_up", rng.standard_normal((C, H * N)).astype(np.float32) / 3)
    model.graph.node.extend(
        [
            node("MatMul", [up.input[0], "other_up"], ["flat"]),
            node("Reshape", ["flat", shape], ["parted"]),
            node("Transpose", ["parted"], ["other_nope"], perm=[0, 2, 1, 3]),
            node("Concat", ["other_nope", rope], ["other_key"], axis=-1),
            node("Concat", ["past.0.other", "other_key"], ["present.0.other"], axis=2),
            node("Transpose", ["present.0.other"], ["other_turned"], perm=[0, 1, 3, 2]),
        ]
    )
    taken(model, "past.0.other", ["B", H, "P", N + R])
    returned(model, "present.0.other", ["B", H, "T", N + R])
    return _attended(model, "other_turned", "present.0.value")


def _attended(model: onnx.ModelProto, keys: str, values: str) -> onnx.ModelProto:
    """One more attention with the query that there is, over keys `[B, H, D, T]`."""
    turned = reader(model, "present.0.key", "Transpose").output[0]
    query = reader(model, turned).input[0]
    stored(model, "other_scale", np.float32(0.2))
    model.graph.node.extend(
        [
            node("MatMul", [query, keys], ["other_product"]),
            node("Mul", ["other_product", "other_scale"], ["other_scaled"]),
            node("Add", ["other_scaled", "mask"], ["other_scores"]),
            node("Softmax", ["other_scores"], ["other_probs"], axis=-1),
            node("MatMul", ["other_probs", values], ["other_context"]),
        ]
    )
    returned(model, "other_context", ["B", H, "S", V])
    return model


def one_cache() -> onnx.ModelProto:
    """Keys and values of all heads cached side by side."""
    model = build(Plan(cache="expanded", storage="separate", rotary="none"))
    keys, values = (maker(model, f"present.0.{name}") for name in ("key", "value"))
    turned, product = reader(model, "present.0.key"), reader(model, "present.0.value")
    turned.input[0], product.input[1] = "keys", "values"
    stored(model, "widths", np.array([N, V]))
    replaced(model, values, [])
    replaced(
        model,
        keys,
        [
            node("Concat", [keys.input[1], values.input[1]], ["both"], axis=-1),
            node("Concat", ["past.0.key", "both"], ["present.0.key"], axis=2),
            node("Split", ["present.0.key", "widths"], ["keys", "values"], axis=-1),
        ],
    )
    for ports in (model.graph.input, model.graph.output):
        for port in [each for each in ports if each.name.endswith(".value")]:
            ports.remove(port)
        for port in [each for each in ports if each.name.endswith(".key")]:
            port.type.tensor_type.shape.dim[3].dim_value = N + V
    return model


def weighed_in_a_branch() -> onnx.ModelProto:
    """The values are weighed in one of two branches, by what is asked."""
    model = build(Plan())
    probabilities = next(each for each in model.graph.node if each.op_type == "Softmax").output[0]
    old = reader(model, probabilities)
    plain = node("MatMul", [probabilities, old.input[1]], ["plain"])
    other = [
        node("Neg", [old.input[1]], ["negative"]),
        node("MatMul", [probabilities, "negative"], ["other"]),
    ]
    branched(model, old, ([plain], other), ["B", H, "S", V])
    return model


JOINT, SPLIT, EXPANDED = Plan(cache="joint"), Plan(), Plan(cache="expanded")
MEANS: dict[str, Made] = {
    **{
        f"{when} of a packed cache": partial(averaged, JOINT, f"{when}.0.latent", ["B", 1, C + R])
        for when in ("past", "present")
    },
    **{
        f"{when} of a split cache": partial(averaged, SPLIT, f"{when}.0.key", ["B", 1, C])
        for when in ("past", "present")
    },
    "present of an expanded cache": partial(averaged, EXPANDED, "present.0.key", ["B", H, N + R]),
}


@pytest.mark.parametrize("made", MEANS.values(), ids=MEANS)
def test_a_buffer_has_rows_that_others_must_not_see(made: Made) -> None:
    found = equal_or_refused(made(), sizes=SIZES, **ASKED["static"])
    assert (found.status, found.codes) == ("refused", ("cache_not_recognized",)), found


@pytest.mark.parametrize("cache_type", ["float16", "int8"])
@pytest.mark.parametrize("when", ["past", "present"])
def test_rows_of_fewer_bits_are_for_the_operator_alone(when: str, cache_type: str) -> None:
    model = averaged(JOINT, f"{when}.0.latent", ["B", 1, C + R])
    with pytest.raises(InputError, match=rf"'{when}\.0\.latent' is read by .* as well"):
        mla_opt.optimize(model, verify=False, cache="packed", cache_type=cache_type)


@pytest.mark.parametrize("word", ["nothing", "packed", "static"])
@pytest.mark.parametrize(
    ("plan", "value"),
    [(JOINT, "present.0.latent"), (SPLIT, "present.0.key")],
    ids=["packed", "split"],
)
def test_masks_of_cached_rows_are_refused(plan: Plan, value: str, word: str) -> None:
    """The operator returns those rows, and reads the mask."""
    found = equal_or_refused(masked_by_rows(plan, value), sizes=SIZES, **ASKED[word])
    assert (found.status, found.codes) == ("refused", ("query_from_latent",)), found


@pytest.mark.parametrize("word", ["nothing", "packed"])
@pytest.mark.parametrize("when", ["past", "present"])
def test_others_may_read_rows_of_caches_that_grow(when: str, word: str) -> None:
    model = averaged(JOINT, f"{when}.0.latent", ["B", 1, C + R])
    found = equal_or_refused(model, sizes=SIZES, **ASKED[word])
    assert (found.status, found.matched) == ("equal", 1), found


@pytest.mark.parametrize("word", ["nothing", "packed"])
@pytest.mark.parametrize(
    ("made", "matched"),
    [
        (partial(values_of_others, "z"), 2),
        (partial(values_of_others, "c"), 1),
        (keys_of_others, 1),
    ],
    ids=["values of the same rows", "values of other rows", "other keys"],
)
def test_attentions_that_share_a_cache_of_expanded_rows(
    made: Made, matched: int, word: str
) -> None:
    found = equal_or_refused(made(), sizes=SIZES, **ASKED[word])
    codes = () if matched == 2 else ("cache_read_twice",)
    assert (found.status, found.matched, found.codes) == ("equal", matched, codes), found


def test_one_cache_of_expanded_keys_and_values_is_refused() -> None:
    found = equal_or_refused(one_cache(), sizes=SIZES)
    assert (found.status, found.codes) == ("refused", ("cache_axes",)), found


def test_values_that_are_weighed_in_a_branch_are_left_alone() -> None:
    found = equal_or_refused(weighed_in_a_branch(), sizes=SIZES)
    assert found.status in ("equal", "refused"), found
