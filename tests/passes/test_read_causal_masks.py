"""What is shown of masks: causal at every size, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import mla_opt
from mla_opt.errors import RefusedError
from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.packing.masks.causal import why_not_causal
from mla_opt.graphs.onnx.packing.masks.decisions import truth
from mla_opt.graphs.onnx.packing.masks.elements import UnreadMaskError
from mla_opt.graphs.onnx.packing.masks.order import KEY, NEW, PAST, QUERY, Case
from tests.graphs.latent_block import Block, Tape, build
from tests.passes.harness import graph_of, run


def reason(block: Block) -> str:
    graph = graph_of(block)
    run(graph, "find_latent_attention")
    (site,) = graph.sites
    return why_not_causal(graph, site.core)


@pytest.mark.parametrize("mask_from", ["keys", "cache", "scores"])
def test_a_mask_by_positions_is_causal(mask_from: Any) -> None:
    assert reason(Block(bias="computed", mask_from=mask_from)) == ""


def test_without_a_mask_queries_see_what_comes_later() -> None:
    assert reason(Block(bias=None)) == "its queries see keys behind their own"


def test_a_mask_of_the_caller_is_not_known() -> None:
    told = reason(Block(bias="additive"))
    assert told == "the mask 'attention_mask' is not followed: it is made of the input" + (
        " 'attention_mask'"
    )


# Ways of writing masks: each is put on the scores of a model without one


def written(make, level: float = -1e9, seen: float = 0.0) -> Block:
    """A block that adds `level` to scores where what `make` returns is false, else `seen`."""

    def masked(tape: Tape, scores: str) -> str:
        added = tape("Where", make(tape), tape.scalar(seen), tape.scalar(level))
        return tape("Add", scores, added)

    return Block(bias=None, edits={"scores": masked})


def places(tape: Tape) -> tuple[str, str]:
    """Of queries ``[S, 1]`` and of keys ``[T]``, counted from the first token."""
    new = tape("Squeeze", tape("Shape", "inputs_embeds", start=1, end=2), tape.ints(0))
    past = tape("Squeeze", tape("Shape", "past.0.keys", start=2, end=3), tape.ints(0))
    zero, one = (tape.stored(np.asarray(n, np.int64), f"int_{n}") for n in (0, 1))
    queries = tape("Add", tape("Range", zero, new, one), past)
    keys = tape("Range", zero, tape("Add", past, new), one)
    return tape("Unsqueeze", queries, tape.ints(1)), keys


def shifted(by: int):
    """No key more than so many places behind the query's own."""

    def make(tape: Tape) -> str:
        queries, keys = places(tape)
        more = tape.stored(np.asarray(by, np.int64), f"shift_{by}")
        return tape("LessOrEqual", keys, tape("Add", queries, more))

    return make


def window(tape: Tape) -> str:
    queries, keys = places(tape)
    first = tape("Sub", queries, tape.stored(np.asarray(4096, np.int64), "width"))
    return tape("And", tape("LessOrEqual", keys, queries), tape("Greater", keys, first))


def without_past(tape: Tape) -> str:
    """The new tokens alone, as a mask that forgets the cache has it."""
    queries, keys = places(tape)
    past = tape("Shape", "past.0.keys", start=2, end=3)
    return tape("And", tape("LessOrEqual", keys, queries), tape("GreaterOrEqual", keys, past))


def first_always(tape: Tape) -> str:
    """The first token is seen by all, which it is anyhow."""
    queries, keys = places(tape)
    first = tape("Equal", keys, tape.stored(np.asarray(0, np.int64), "int_0"))
    return tape("Or", tape("LessOrEqual", keys, queries), first)


def negated(tape: Tape) -> str:
    queries, keys = places(tape)
    return tape("Not", tape("Greater", keys, queries))


def by_lookup(tape: Tape) -> str:
    """A square of truths, of which the rows of the new tokens are taken."""
    queries, keys = places(tape)
    square = tape("LessOrEqual", keys, tape("Unsqueeze", keys, tape.ints(1)))
    return tape("Gather", square, tape("Squeeze", queries, tape.ints(1)), axis=0)


def sliced(tape: Tape) -> str:
    """The same square, cut from the past on."""
    _, keys = places(tape)
    square = tape("LessOrEqual", keys, tape("Unsqueeze", keys, tape.ints(1)))
    past = tape("Shape", "past.0.keys", start=2, end=3)
    return tape("Slice", square, past, tape.ints(1 << 40), tape.ints(0))


def padded(tape: Tape) -> str:
    """With padding: the caller's mask is 1 for every token of a sequence by itself."""
    queries, keys = places(tape)
    given = tape.input("attention_mask", ("B", "T"), TensorProto.INT64)
    there = tape("Unsqueeze", tape("Cast", given, to=TensorProto.BOOL), tape.ints(1, 2))
    return tape("And", tape("LessOrEqual", keys, queries), there)


def by_own_positions(tape: Tape) -> str:
    """Positions of keys are looked up by their places, as if there were no past."""
    positions = tape.input("position_ids", ("B", "S"), TensorProto.INT64)
    _, keys = places(tape)
    of_keys = tape("Gather", positions, keys, axis=1)
    allowed = tape("LessOrEqual", tape("Unsqueeze", of_keys, tape.ints(1)),
                   tape("Unsqueeze", positions, tape.ints(2)))  # fmt: skip
    return tape("Unsqueeze", allowed, tape.ints(1))


def counted_from_the_last(tape: Tape) -> str:
    """All keys: the last place is no place before the first."""
    queries, keys = places(tape)
    one = tape.stored(np.asarray(1, np.int64), "shift_1")
    last = tape("Gather", keys, tape.stored(np.asarray(-1, np.int64), "last"))
    return tape("LessOrEqual", keys, tape("Add", queries, tape("Add", one, last)))


def truths_from_the_last(tape: Tape) -> str:
    """The row of the last query, for all: it sees every key."""
    _, keys = places(tape)
    square = tape("LessOrEqual", keys, tape("Unsqueeze", keys, tape.ints(1)))
    return tape("Gather", square, tape.ints(-1), axis=0)


def repeated_or_not(tape: Tape) -> str:
    """An axis that may be one and is broadcast then, or that of the keys."""
    queries, _ = places(tape)
    return tape("LessOrEqual", one_or_keys(tape), queries)


def one_or_keys(tape: Tape) -> str:
    """Places along an axis whose size the file does not say."""
    several = tape.input("several", ("keys or 1",), TensorProto.INT64)
    count = tape("Squeeze", tape("Shape", several), tape.ints(0))
    zero, one = (tape.stored(np.asarray(n, np.int64), f"from_{n}") for n in (0, 1))
    return tape("Range", zero, count, one)


def repeated_inside(tape: Tape) -> str:
    """The same within the mask, whose own size is that of the scores."""
    queries, keys = places(tape)
    order = tape("LessOrEqual", one_or_keys(tape), queries)
    return tape(
        "And",
        order,
        tape(
            "Expand",
            tape("GreaterOrEqual", keys, keys),
            tape("Concat", tape("Shape", queries, start=0, end=1), tape("Shape", keys), axis=0),
        ),
    )


def of_infinity(tape: Tape) -> str:
    """An integer that is none."""
    _, keys = places(tape)
    endless = tape("Cast", tape.stored(np.asarray(np.inf, np.float32), "inf"), to=TensorProto.INT64)
    return tape("LessOrEqual", keys, tape("Identity", endless))


@pytest.mark.parametrize(
    "make", [shifted(0), negated, first_always, by_lookup, sliced, padded], ids=lambda m: m.__name__
)
def test_causal_however_it_is_written(make) -> None:
    assert reason(written(make)) == ""


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (written(shifted(1)), "depends on more than which token comes first"),
        (written(shifted(-1)), "depends on more than which token comes first"),
        (written(window), "depends on more than which token comes first"),
        (written(without_past), "depends on more than which token comes first"),
        (written(by_own_positions), "depends on more than which token comes first"),
        (written(counted_from_the_last), "its queries see keys behind their own"),
        (written(truths_from_the_last), "its queries see keys behind their own"),
        (written(repeated_or_not), "is not followed"),
        (written(repeated_inside), "is not followed"),
        (written(of_infinity), "makes an integer of inf"),
        (written(shifted(0), level=-100.0), "its queries see keys behind their own"),
        (written(shifted(0), seen=0.5), "adds 0.5 to scores of keys that a query sees"),
    ],
    ids=[
        "one ahead",
        "one behind",
        "window",
        "without the past",
        "own positions",
        "from the last",
        "truths from the last",
        "repeated or not",
        "repeated inside",
        "infinity",
        "weak",
        "not nothing",
    ],
)
def test_what_is_not_causal(block: Block, told: str) -> None:
    """A window of 4096 is noticed as well as one of 4: no example has to be as long."""
    assert told in reason(block)


def test_a_truth_that_depends_on_places_is_none() -> None:
    assert truth(0.5)
    with pytest.raises(UnreadMaskError):
        truth(KEY)


def test_what_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match=r"target onnxruntime-paged cannot be had \(mask_not"):
        mla_opt.optimize(
            build(written(window)), target="onnxruntime-paged", cache_type="float16", verify=False
        )


@pytest.mark.parametrize(
    ("left", "right", "not_after", "after"),
    [
        (PAST + QUERY, KEY, True, False),
        (KEY, PAST + QUERY + 1, False, True),
        (PAST + NEW - 1, KEY, True, True),
        (KEY, PAST, None, True),
        (KEY, 0, True, True),
        (NEW, 1, True, True),
        (PAST, 1, None, None),
        (KEY * 2, PAST + QUERY, None, True),
        (KEY, sizes.symbol("other"), None, None),
    ],
)
def test_what_the_order_of_two_tokens_decides(left, right, not_after, after) -> None:
    assert Case("not after").is_at_least(left, right) is not_after
    assert Case("after").is_at_least(left, right) is after


def test_decisions_hold_at_every_size() -> None:
    """Each is tried on all small sizes: what is decided is so in every call of the case."""
    rng = np.random.default_rng(0)
    symbols = (KEY, QUERY, PAST, NEW)
    for _ in range(60):
        factors = rng.integers(-2, 3, 4)
        left = sum(int(f) * s for f, s in zip(factors, symbols)) + int(rng.integers(-2, 3))
        for when in ("not after", "after"):
            decided = Case(when).is_at_least(left, 0)
            if decided is None:
                continue
            for new, past in np.ndindex(4, 4):
                for query, key in np.ndindex(new, past + new):
                    if (key > past + query) is (when == "after"):
                        value = left.subs(dict(zip(symbols, (key, query, past, new))))
                        assert (value >= 0) == decided
