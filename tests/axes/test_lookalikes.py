"""What was rewritten wrongly once, or could be: each is equal at every size, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import mla_opt
from tests.axes.drawing import ASKED
from tests.axes.feeding import Feeds, understand
from tests.axes.harness import FEW, SIZES, Runner, Size, deviation, equal_or_refused
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

SOME = tuple(size for size in SIZES if size.batch > 2 or size.total > 200)

FOUND = [
    # of scores and probabilities, at a length that no example has
    *(
        f"{point} t {kind} 1000"
        for point in ("scores", "probs")
        for kind in ("cropped", "windowed")
    ),
    "probs t cut 1000",
    "probs t scattered 1000",
    "probs t turned 1000",
    "probs s mixed 200",
    "scores s turned 200",
    "masked t turned 1000",
    # of keys, values and k_pe, by indices that come from shapes
    *(f"{point} t scattered 1000" for point in ("key", "value", "k_pe", "latent")),
    "value t dropped 1000",
    "value t scattered_elements 1000",
    "value t before 1000",
    "nope t reversed 1000",
    "key t backwards 1000",
    # from some sequence on
    *(f"{point} b mixed 2" for point in ("value", "key", "probs", "latent")),
    "nope b swapped 2",
    "nope b windowed 3",
    "probs b misread 0",
    "key b cut 2",
    # of heads
    "key h windowed 1",
    "value h cropped 0",
    # of heads and width, by how many tokens there are
    *(
        f"{point} {axis} {kind}_by_count {length}"
        for point, axis, length in (("value", "h", 1000), ("nope", "w", 3), ("latent", "w", 1000))
        for kind in ("exchanged", "padded", "put", "led", "parted", "rolled")
    ),
    # of numbers too small, or too large, to be noticed
    "model - small 0",
    "model - small_k_pe 0",
    "scores b curved 0",
    "masked b by_log 0",
    # of the whole model
    *(f"model - {kind} 0" for kind in ("counted", "order", "softmax_axis", "query_reads")),
    *(f"model - {kind} 0" for kind in ("values_elsewhere", "past_returned")),
]

GROUPS = {
    **{
        f"groups apart, {mutation}": Plan(groups="apart", mutations=(mutation,))
        for mutation in (
            "second t scattered 1000",
            "second b mixed 2",
            "second t cropped 100",
            "second t softened 0",
        )
    },
    **{
        f"groups {kind}, {mutation}": Plan(groups=kind, mutations=(mutation,))
        for kind in ("two", "axis")
        for mutation in ("nope h mixed 1", "value h reversed 0", "latent t before 100")
    },
    "groups of an axis, expanded": Plan(
        groups="axis", cache="expanded", mutations=("value t dropped 1000",)
    ),
}
"""Of groups of heads: heads that change their group, and one latent of two that is another."""

CAUSAL = {
    f"causal by flag, {product}, {mutation}": Plan(
        mask="flag", product=product, cache="expanded", mutations=(mutation,)
    )
    for product in ("attention", "multi_head", "group_query")
    for mutation in ("key t rolled 0", "query s mixed 3", "context s turned 200")
}

PARTS = {
    **{
        f"{kind}, {mutation}": Plan(**{kind: "two_products"}, mutations=(mutation,))
        for kind in ("key", "absorbed")
        for mutation in (
            "last_key t rolled 0",
            "last_key b swapped 2",
            "product t turned 1000",
            "product s reversed 3",
            "product b misread 0",
            "model - subtracted 0",
        )
    },
    **{
        f"{kind}, {mutation}": Plan(exponential=kind, mutations=(f"model - {mutation} 0",))
        for kind, mutation in (
            ("by_hand", "denominator"),
            ("reciprocal", "denominator"),
            ("by_hand", "maximum"),
            ("by_hand", "softmax_axis"),
            ("logarithm", "softmax_axis"),
        )
    },
    "masks scaled by less than nothing": Plan(mask="boolean", mutations=("masked b negated 0",)),
}
"""Of sums of products, and of softmax written out."""

SINKS = {
    f"sinks {mutation}": Plan(sinks="some", mutations=(f"sinks {mutation}",))
    for mutation in (
        "h exchanged_by_count 100",
        "h padded_by_count 100",
        "s cropped 100",
        "s windowed 100",
        "h windowed 1",
    )
}
"""Sinks that are not each head's own number, the same in every call."""

ASKED_FOR: dict[str, tuple[Plan, str]] = {
    "folded queries in reverse": (Plan(mutations=("made_query s scattered 100",)), "fold-q"),
    "folded queries of keys in reverse": (Plan(mutations=("key w scattered 1",)), "fold-q"),
    "folded queries of keys in reverse, fold": (Plan(mutations=("key w reversed 1",)), "fold"),
    "folded queries mixed": (Plan(mutations=("query s mixed 3",)), "fold"),
    "folded context in reverse": (Plan(mutations=("context s scattered 100",)), "fold-o"),
    "values of expanded caches": (
        Plan(cache="expanded", mutations=("value t scattered 1000",)),
        "nothing",
    ),
    "a row that sees nothing": (Plan(mask="boolean"), "nothing"),
    "a flag over rows kept outside": (Plan(mask="flag"), "nothing"),
    "a flag over rows kept inside": (Plan(mask="flag", cache="expanded"), "nothing"),
    "one expanded cache of two layers": (Plan(cache="expanded", layers="shared"), "nothing"),
    "one latent cache of two layers": (Plan(layers="shared"), "nothing"),
    "flat expanded caches": (Plan(cache="expanded", cache_axes="flat"), "nothing"),
    "keys read by an output": (
        Plan(cache="expanded", mutations=("model - keys_returned 0",)),
        "static",
    ),
    "probabilities read by an output": (Plan(mutations=("model - probs_returned 0",)), "static"),
    "sequences mixed in queries, widths in k_pe": (
        Plan(
            mask="none",
            cache="static_joint",
            put="elements",
            product="attention",
            opset="23",
            mutations=("query b mixed 3", "k_pe w mixed 0"),
        ),
        "fold-o",
    ),
    "an output by Gemm": (Plan(out="gemm"), "static"),
    "W_O summed over two axes": (Plan(out="einsum"), "fold"),
    "a mask by the shape of keys": (Plan(storage="separate", product="baddbmm"), "nothing"),
}


@pytest.mark.parametrize("mutation", FOUND)
def test_what_only_looks_like_latent_attention(mutation: str) -> None:
    held(Plan(mutations=(mutation,)), "nothing")


@pytest.mark.parametrize("plan", PARTS.values(), ids=PARTS)
def test_parts_that_are_something_else(plan: Plan) -> None:
    held(plan, "nothing")


@pytest.mark.parametrize("plan", SINKS.values(), ids=SINKS)
def test_sinks_that_are_something_else(plan: Plan) -> None:
    held(plan, "nothing")


@pytest.mark.parametrize("plan", [*GROUPS.values(), *CAUSAL.values()], ids=[*GROUPS, *CAUSAL])
def test_groups_and_causal_masks_that_are_something_else(plan: Plan) -> None:
    held(plan, "nothing")


@pytest.mark.parametrize(("plan", "word"), ASKED_FOR.values(), ids=ASKED_FOR)
def test_what_is_asked_for(plan: Plan, word: str) -> None:
    held(plan, word)


def held(plan: Plan, word: str) -> None:
    sizes = SOME if word != "static" else tuple(size for size in SOME if size.total < 1200)
    found = equal_or_refused(build(settled(plan)), sizes=sizes, **ASKED[word])
    assert found.status in ("equal", "refused"), found


def test_a_latent_for_each_head_is_refused() -> None:
    found = equal_or_refused(build(settled(Plan(groups="each"))), sizes=FEW)
    assert (found.status, found.codes) == ("refused", ("latent_per_head",))


def test_a_bias_of_values_beside_sinks_is_refused() -> None:
    """Probabilities do not add up to one."""
    found = equal_or_refused(build(Plan(bias="value", sinks="some")), sizes=FEW)
    assert (found.status, found.codes) == ("refused", ("sink_with_value_bias",))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bias_of_keys_beside_sinks_is_refused(dtype: str) -> None:
    """It moves the scores of a query, however little, and not the sink beside them."""
    found = equal_or_refused(build(Plan(bias="key", sinks="some", dtype=dtype)), sizes=FEW)
    assert (found.status, found.codes) == ("refused", ("sink_with_key_bias",))


@pytest.mark.parametrize("word", ["factored", "expanded"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(bias="value", softmax="guarded", mask="boolean", fill="infinite"),
        Plan(bias="value", product="attention", mask="boolean"),
    ],
    ids=["guarded", "operator"],
)
def test_a_query_that_sees_nothing_gets_no_bias_of_values(plan: Plan, word: str) -> None:
    model = build(settled(plan))
    made = ir.to_proto(mla_opt.optimize(model, verify=False, **ASKED[word]).model)
    before, after = (Runner(each, understand(each)) for each in (model, made))
    given = Feeds(before.inputs, Size(2, 3, 4)).draw()
    given["mask"][1, 0, 1] = False
    assert deviation(before.run(given)["y"], after.run(given)["y"]) < 1e-5


def test_a_window_as_long_as_any_context() -> None:
    plan = Plan(mask="none", mutations=("value t windowed 131071",))
    found = equal_or_refused(build(plan), sizes=(Size(1, 1, 140000),))
    assert found.status in ("equal", "refused"), found


# What a file brings under names of ours


@pytest.mark.parametrize("cache", ["latent", "expanded", "none"])
def test_names_that_the_optimizer_takes_are_free_for_the_model(cache: str) -> None:
    model = build(Plan(cache=cache))
    made = ir.to_proto(mla_opt.optimize(model, verify=False).model)
    own = [name for name in dict.fromkeys(_names(made)) if name not in set(_names(model))]
    renamed = _renamed(model, own)
    assert set(own) & set(_names(renamed))
    found = equal_or_refused(renamed, sizes=FEW)
    assert (found.status, found.matched) == ("equal", 1), found


def _names(model: onnx.ModelProto) -> Iterator[str]:
    """Stored tensors first, then what nodes make; of branches, too."""
    yield from _names_of(model.graph)


def _names_of(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (each.name for each in graph.initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _names_of(attribute.g)


def _renamed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with its tensors and values under other names, as far as they go."""
    fixed = {each.name for each in (*model.graph.input, *model.graph.output)}
    free = [name for name in dict.fromkeys(_names(model)) if name not in fixed]
    given = dict(zip(free, names[::-1]))
    for tensor in model.graph.initializer:
        tensor.name = given.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
        node.output[:] = [given.get(name, name) for name in node.output]
    return model


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_functions_of_our_name_are_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    model = build(Plan())
    names = _functions_made(monkeypatch, model)
    made = ir.to_proto(mla_opt.optimize(model, verify=False).model)
    ours = next(each for each in made.functions if each.input)
    ours.node.append(helper.make_node("Neg", [ours.output[0]], ["negated"]))
    ours.output[0] = "negated"
    if used:
        _with_call(model, ours)
    for domain, name, overload in names:
        if (domain, name) == (ours.domain, ours.name):
            model.functions.add().CopyFrom(ours)
            model.functions[-1].overload = overload
    model.opset_import.extend(each for each in made.opset_import if each.domain == ours.domain)
    found = equal_or_refused(model, sizes=FEW)
    assert found.status in ("equal", "refused"), found


def _functions_made(
    monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto
) -> set[tuple[str, str, str]]:
    """Domain, name and overload of every function that is made on the way."""
    made: set[tuple[str, str, str]] = {("mla_opt", "LatentAttention", "")}
    original = ir.Function.__init__

    def recorded(self: ir.Function, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        made.add(self.identifier())

    with monkeypatch.context() as patch:
        patch.setattr(ir.Function, "__init__", recorded)
        mla_opt.optimize(model, verify=False)
    return made


def _with_call(model: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    """Call the function for its own sake, on hidden states put in as every operand."""
    body = helper.make_node("Identity", [function.input[0]], ["whole"])
    del function.node[:]
    function.node.append(body)
    function.output[:] = ["whole"]
    call = helper.make_node(
        function.name, ["x"] * len(function.input), ["called"], domain=function.domain
    )
    call.attribute.extend(helper.make_attribute(name, 1) for name in function.attribute)
    model.graph.node.append(call)
    kind = onnx.TensorProto.FLOAT
    model.graph.output.append(helper.make_tensor_value_info("called", kind, ["B", "S", 13]))
