from __future__ import annotations

import pytest

import mla_opt
from mla_opt.engines.profiles import Range, Ranges
from mla_opt.errors import InputError
from mla_opt.models import demo_model


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("4", (1, 4, 4)), ("512,2k", (1, 512, 2048)), ("2, 4 ,8", (2, 4, 8)), ("1K", (1, 1024, 1024))],
)
def test_ranges_as_they_are_written(text, numbers):
    found = Range.parse(text)
    assert (found.least, found.usual, found.most) == numbers


@pytest.mark.parametrize("text", ["", "x", "1,2,3,4", "1.5", "1,,2", "2kk", "-1"])
def test_what_is_no_range(text):
    with pytest.raises(InputError, match="is not MOST, USUAL,MOST or LEAST,USUAL,MOST"):
        Range.parse(text)


@pytest.mark.parametrize("text", ["0", "8,4", "2,1,4"])
def test_ranges_that_fall_or_begin_below_one(text):
    with pytest.raises(InputError, match="must begin at 1 or above, and must not fall"):
        Range.parse(text)


def ranges(**changes) -> Ranges:
    given = {
        "rows": 64,
        "batch": Range(1, 2, 4),
        "prompt": Range(1, 8, 32),
        "step": Range(1, 1, 3),
        "context": Range(1, 16, 64),
    }
    return Ranges(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": Range(1, 16, 32)}, "context goes up to 32 tokens, and the caches have 64"),
        ({"context": Range(1, 16, 128)}, "context goes up to 128 tokens, and the caches have 64"),
        ({"prompt": Range(1, 8, 65)}, "a prompt of 65 tokens does not fit in a cache of 64 rows"),
        ({"step": Range(1, 8, 65)}, "a step of 65 tokens does not fit in a cache of 64 rows"),
    ],
)
def test_ranges_that_do_not_fit_the_cache(changes, message):
    with pytest.raises(InputError, match=message):
        ranges(**changes)


def profile(phase: str):
    model = mla_opt.optimize(
        demo_model(), target="tensorrt", cache="static:64", phase=phase, verify=False
    ).model
    found = ranges().profile(model, phase)
    assert set(found) == {value.name for value in model.graph.inputs}
    return found


def test_shapes_of_prompts():
    found = profile("prefill")
    assert found["input_ids"] == ((1, 1), (2, 8), (4, 32))
    assert found["attention_mask"] == ((1, 1), (2, 8), (4, 32))
    assert found["past_len"] == ((1,), (2,), (4,))
    caches = [shapes for name, shapes in found.items() if name.endswith("latent")]
    assert caches
    assert {tuple(shape[2] for shape in shapes) for shapes in caches} == {(64, 64, 64)}


def test_shapes_of_decode_steps():
    found = profile("decode")
    assert found["input_ids"] == ((1, 1), (2, 1), (4, 3))
    assert found["attention_mask"] == ((1, 1), (2, 16), (4, 64))
