"""Numbers of heads and of width that stored indices put in another order, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.axes.harness import SIZES, equal_or_refused
from tests.axes.plan import SIZES as WIDTHS
from tests.axes.plan import Plan, settled
from tests.axes.writer import build

SMALL = (SIZES[1], SIZES[3])


class Edited:
    """A model whose values ``[B, H, T, V]`` are gathered before they are weighted."""

    def __init__(self, size: str = "tiny") -> None:
        self.model = build(settled(Plan(size=size)))
        self.heads, self.width = WIDTHS[size][0], WIDTHS[size][3]
        (softmax,) = (each for each in self.model.graph.node if each.op_type == "Softmax")
        (self.product,) = (
            each for each in self.model.graph.node if softmax.output[0] in each.input
        )
        self.made = self.product.input[1]

    def stored(self, array: object) -> str:
        name = f"stored_{len(self.model.graph.initializer)}"
        content = numpy_helper.from_array(np.asarray(array, np.int64), name)
        self.model.graph.initializer.append(content)
        return name

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        nodes = self.model.graph.node
        made = f"edited_{len(nodes)}"
        node = helper.make_node(op_type, list(inputs), [made], **attributes)
        nodes.insert(list(nodes).index(self.product), node)
        return made

    def shape(self, *more: int) -> str:
        """The shape of the values, and axes behind it."""
        whole = self.op("Shape", self.made)
        return self.op("Concat", whole, self.stored(more), axis=0) if more else whole

    def read(self, values: str) -> onnx.ModelProto:
        self.product.input[1] = values
        return self.model

    def order(self, count: int) -> list[int]:
        return [int(place) for place in np.random.default_rng(3).permutation(count)]


def elements_of_width(model: Edited) -> str:
    index = model.op("Expand", model.stored(model.order(model.width)), model.shape())
    return model.op("GatherElements", model.made, index, axis=-1)


def elements_of_heads(model: Edited) -> str:
    order = np.reshape(model.order(model.heads), (-1, 1, 1))
    index = model.op("Expand", model.stored(order), model.shape())
    return model.op("GatherElements", model.made, index, axis=1)


def elements_in_order(model: Edited) -> str:
    index = model.op("Expand", model.stored(range(model.width)), model.shape())
    return model.op("GatherElements", model.made, index, axis=3)


def all_tokens_in_order(model: Edited) -> str:
    """Places of tokens, from 0 on, as many as there are."""
    count = model.op("Shape", model.made, start=2, end=3)
    end = model.op("Squeeze", count, model.stored([0]))
    places = model.op("Range", model.stored(0), end, model.stored(1))
    column = model.op("Unsqueeze", places, model.stored([1]))
    return model.op("GatherElements", model.made, model.op("Expand", column, model.shape()), axis=2)


def width_in_front(model: Edited) -> str:
    turned = model.op("Transpose", model.made, perm=[3, 0, 1, 2])
    index = model.stored(np.reshape(model.order(model.width), (-1, 1)))
    return model.op("Transpose", model.op("GatherND", turned, index), perm=[1, 2, 3, 0])


def within_rows(model: Edited) -> str:
    index = model.stored(np.reshape(model.order(model.width), (-1, 1)))
    wide = model.op("Expand", index, model.shape(1))
    return model.op("GatherND", model.made, wide, batch_dims=3)


GATHERED: dict[str, Callable[[Edited], str]] = {
    each.__name__: each
    for each in (
        elements_of_width,
        elements_of_heads,
        elements_in_order,
        all_tokens_in_order,
        width_in_front,
        within_rows,
    )
}


@pytest.mark.parametrize("name", GATHERED)
def test_a_stored_order(name: str) -> None:
    model = Edited()
    outcome = equal_or_refused(model.read(GATHERED[name](model)), sizes=SMALL)
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


@pytest.mark.parametrize("name", ["elements_of_width", "width_in_front"])
def test_a_stored_order_at_the_widths_of_released_models(name: str) -> None:
    model = Edited("real")
    outcome = equal_or_refused(model.read(GATHERED[name](model)), sizes=SMALL[:1])
    assert (outcome.status, outcome.codes, outcome.matched) == ("equal", (), 1), outcome


def tokens_backwards(model: Edited) -> str:
    """The last token first."""
    count = model.op("Shape", model.made, start=2, end=3)
    end = model.op("Squeeze", count, model.stored([0]))
    places = model.op("Range", model.stored(0), end, model.stored(1))
    last = model.op("Sub", end, model.stored(1))
    column = model.op("Unsqueeze", model.op("Sub", last, places), model.stored([1]))
    return model.op("GatherElements", model.made, model.op("Expand", column, model.shape()), axis=2)


def first_token_for_all(model: Edited) -> str:
    index = model.op("Expand", model.stored([0]), model.shape())
    return model.op("GatherElements", model.made, index, axis=2)


def tokens_by_their_number(model: Edited) -> str:
    """The place on the width depends on the token."""
    count = model.op("Shape", model.made, start=2, end=3)
    end = model.op("Squeeze", count, model.stored([0]))
    places = model.op("Range", model.stored(0), end, model.stored(1))
    some = model.op("Mod", places, model.stored(model.width))
    column = model.op("Unsqueeze", some, model.stored([1]))
    return model.op("GatherElements", model.made, model.op("Expand", column, model.shape()), axis=3)


def sequences_swapped(model: Edited) -> str:
    """The last sequence in the place of the first ones."""
    turned = model.op("Reshape", model.stored([-1]), model.stored([1, 1, 1, 1]))
    index = model.op("Expand", turned, model.shape())
    return model.op("GatherElements", model.made, index, axis=0)


OTHERS: dict[str, Callable[[Edited], str]] = {
    each.__name__: each
    for each in (tokens_backwards, first_token_for_all, tokens_by_their_number, sequences_swapped)
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_order_that_is_no_order_is_refused(name: str) -> None:
    model = Edited()
    outcome = equal_or_refused(model.read(OTHERS[name](model)), sizes=SMALL)
    assert outcome.status == "refused", outcome
    assert outcome.codes
