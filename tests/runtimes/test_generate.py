"""`generate`: what the original model would say, in batches, turns and chunks."""

from __future__ import annotations

import numpy as np
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import LatentCache, generate, session
from tests.runtimes.conftest import VOCABULARY
from tests.turned_mask import turned

PROMPTS = [[3, 14, 15, 92, 65, 35], [8, 97], [9, 32, 38, 46]]


def lists(tokens) -> list[list[int]]:
    return [row.tolist() for row in tokens]


def test_ragged_prompts_say_what_each_would_alone(opened, greedy):
    result = generate(opened, PROMPTS, max_new_tokens=12)
    assert lists(result.tokens) == [greedy(prompt, 12) for prompt in PROMPTS]
    assert result.finish_reasons == ("length",) * 3
    assert result.prompt_tokens == (6, 2, 4)
    assert result.steps == 11
    # The last token of each was said, but not yet run.
    assert result.cache.lengths.tolist() == [6 + 11, 2 + 11, 4 + 11]
    assert min(result.prefill_seconds, result.decode_seconds) > 0


def test_one_sequence_may_be_a_flat_list(kept, greedy):
    assert lists(generate(kept, PROMPTS[0], max_new_tokens=3).tokens) == [greedy(PROMPTS[0], 3)]
    array = np.asarray(PROMPTS[0], np.int32)
    assert lists(generate(kept, array, max_new_tokens=3).tokens) == [greedy(PROMPTS[0], 3)]


def test_a_model_may_be_a_path_and_need_not_be_optimized(greedy):
    result = generate(demo_model(), PROMPTS, max_new_tokens=6)
    assert lists(result.tokens) == [greedy(prompt, 6) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 2, 5, 100, "auto"])
def test_chunks_change_nothing(opened, greedy, chunk):
    result = generate(opened, PROMPTS, max_new_tokens=4, chunk=chunk)
    assert lists(result.tokens) == [greedy(prompt, 4) for prompt in PROMPTS]


def test_a_small_budget_makes_small_chunks(kept, greedy, monkeypatch):
    sizes = []
    run = LatentCache.run
    monkeypatch.setattr(
        LatentCache,
        "run",
        lambda self, ids, valid: sizes.append(ids.shape[1]) or run(self, ids, valid),
    )
    long = (np.arange(200) * 7 % VOCABULARY).tolist()
    plenty = generate(kept, long, max_new_tokens=1)
    largest = max(sizes)
    assert sum(sizes) == 200
    sizes.clear()
    little = generate(kept, long, max_new_tokens=1, memory_budget=1 << 17)
    assert sum(sizes) == 200
    assert 1 <= max(sizes) < largest / 2
    assert lists(little.tokens) == lists(plenty.tokens) == [greedy(long, 1)]


def test_stop_tokens_end_each_sequence_alone(opened, greedy):
    alone = [greedy(prompt, 12) for prompt in PROMPTS]
    stop = alone[1][3]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in alone]
    assert len({len(row) for row in cut}) > 1, "the test needs sequences that end apart"
    never = min(set(range(VOCABULARY)) - {token for row in alone for token in row})
    result = generate(opened, PROMPTS, max_new_tokens=12, stop_tokens=[stop, never])
    assert lists(result.tokens) == cut
    reasons = ["stop" if row[-1] == stop else "length" for row in cut]
    assert list(result.finish_reasons) == reasons


def test_generation_ends_when_all_have(kept, greedy):
    stop = greedy(PROMPTS[0], 2)[1]
    result = generate(kept, PROMPTS[0], max_new_tokens=1000, stop_tokens=stop)
    assert len(result.tokens[0]) <= 2


def test_a_conversation_goes_on_from_its_cache(opened, greedy):
    """Answers end at different steps, and so padding lies between the turns."""
    first = [greedy(prompt, 8) for prompt in PROMPTS]
    stop = first[2][2]
    result = generate(opened, PROMPTS, max_new_tokens=8, stop_tokens=stop)
    replies = [[1, 2, 3], [4], [5, 6]]
    texts = [
        [*prompt, *said, *reply]
        for prompt, said, reply in zip(PROMPTS, lists(result.tokens), replies)
    ]
    again = generate(opened, replies, max_new_tokens=5, cache=result.cache)
    assert again.cache is result.cache
    assert lists(again.tokens) == [greedy(text, 5) for text in texts]


def test_the_callback_sees_every_step(kept):
    seen = []
    result = generate(
        kept, PROMPTS, max_new_tokens=5, stream=lambda step: seen.append(step.tolist())
    )
    assert np.array(seen).T.tolist() == lists(result.tokens)
    stop = int(result.tokens[0][1])
    seen.clear()
    result = generate(kept, PROMPTS, max_new_tokens=5, stop_tokens=stop, stream=seen.append)
    table = np.stack(seen, axis=1)
    for row, said in zip(table, result.tokens):
        assert row[: len(said)].tolist() == said.tolist()
        assert (row[len(said) :] == -1).all()


def test_an_error_in_the_callback_reaches_the_caller(kept):
    def stream(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(kept, PROMPTS, max_new_tokens=5, stream=stream)


def test_draws_repeat_by_their_seed_alone(kept):
    def drawn(seed):
        return lists(generate(kept, PROMPTS, max_new_tokens=9, temperature=1.0, seed=seed).tokens)

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_top_k_of_one_is_greedy(kept, greedy):
    result = generate(kept, PROMPTS, max_new_tokens=6, temperature=3.0, top_k=1, seed=1)
    assert lists(result.tokens) == [greedy(prompt, 6) for prompt in PROMPTS]


def test_a_full_buffer_is_refused_before_anything_runs(models):
    fixed = session(models["static:64"])
    with pytest.raises(
        InputError, match="65 rows do not fit in a cache of 64, of which 0 are used"
    ):
        generate(fixed, [1] * 60, max_new_tokens=6)
    assert len(generate(fixed, [1] * 60, max_new_tokens=5).tokens[0]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "no tokens"),
        ({"tokens": [[1], []]}, "sequence 1 has no token to begin with"),
        ({"tokens": [[1], [VOCABULARY]]}, f"sequence 1 holds the token id {VOCABULARY}; the model"),
        ({"tokens": [[-1]]}, "token id -1"),
        ({"tokens": [[0.5]]}, "flat list of token ids, not float64"),
        ({"tokens": [[[1]]]}, "flat list of token ids"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"stop_tokens": [VOCABULARY]}, f"token id {VOCABULARY}"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"chunk": 0}, "chunk must be 'auto' or a number"),
        ({"chunk": "large"}, "chunk must be 'auto' or a number"),
        ({"memory_budget": 0}, "memory_budget must be a positive number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kept, arguments, message):
    with pytest.raises(InputError, match=message):
        generate(kept, **{"tokens": PROMPTS, "max_new_tokens": 2, **arguments})


def test_a_cache_of_another_session_is_refused(kept, models):
    cache = LatentCache.create(session(models["keep"]))
    with pytest.raises(InputError, match="of another session"):
        generate(kept, [1], max_new_tokens=1, cache=cache)
    with pytest.raises(InputError, match="holds 1 sequences, but tokens of 3"):
        generate(cache.decoder.session, PROMPTS, max_new_tokens=1, cache=cache)


@pytest.mark.parametrize("cache", ["original", "keep", "static"])
def test_a_mask_that_is_true_where_there_is_padding(cache, greedy, tmp_path):
    path = turned(tmp_path / "model.onnx")
    model = path if cache == "original" else mla_opt.optimize(path, cache=cache).model
    prompts = [[3, 14, 15, 92, 65], [8, 97]]
    result = generate(session(model), prompts, max_new_tokens=6)
    for prompt, tokens in zip(prompts, result.tokens):
        assert tokens.tolist() == greedy(prompt, 6)
