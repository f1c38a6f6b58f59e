"""`LatentCache`: rows added, dropped, reordered and forgotten, and logits as of the whole text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import LatentCache, session
from mla_opt.runtimes.onnxruntime.cache import FIRST_ROWS
from tests.runtimes.conftest import TOLERANCE

ROWS = [[3, 14, 15, 92, 65], [8, 97], [9, 32, 38, 46]]


def check(logits, original, texts):
    expected = np.stack([original(text)[-1] for text in texts])
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


def test_appended_tokens_see_all_before_them(opened, original):
    cache = LatentCache.create(opened, batch=3)
    check(cache.append(ROWS), original, ROWS)
    more = [[1], [2, 3, 4], [5, 6]]
    texts = [a + b for a, b in zip(ROWS, more)]
    check(cache.append(more), original, texts)
    assert cache.lengths.tolist() == [6, 5, 6]
    # Each call is as long as its longest row.
    assert cache.rows == 5 + 3


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 0, 2, 2], [1], [1, 1, 1, 1, 1], [0, 1, 2]])
def test_select(opened, original, order):
    cache = LatentCache.create(opened, batch=3)
    cache.append(ROWS)
    cache.select(order)
    assert cache.batch == len(order)
    assert cache.lengths.tolist() == [len(ROWS[i]) for i in order]
    more = [[10 + i] for i in range(len(order))]
    check(cache.append(more), original, [ROWS[i] + new for i, new in zip(order, more)])


def test_select_moves_pending_tokens_along(kept, original):
    cache = LatentCache.create(kept, batch=2)
    cache.append(ROWS[:2])
    cache.pending = (np.array([50]), np.array([60]))
    cache.select([1, 0])
    check(cache.append([[1], [2]]), original, [[*ROWS[1], 60, 1], [*ROWS[0], 50, 2]])


def test_beams_of_a_search(opened, original):
    """The best 3 continuations of 4 tokens, against scoring every text anew."""
    width, prompt = 3, ROWS[0]
    cache = LatentCache.create(opened)
    logits = np.repeat(cache.append(prompt), 1, axis=0)
    beams, scores = [[]], np.zeros(1)
    for _ in range(4):
        total = scores[:, None] + log_softmax(logits)
        best = np.argsort(-total, axis=None)[:width]
        parents, chosen = np.unravel_index(best, total.shape)
        scores = total.reshape(-1)[best]
        beams = [[*beams[p], int(t)] for p, t in zip(parents, chosen)]
        cache.select(parents)
        logits = cache.append(chosen[:, None]).copy()
    for beam, score in zip(beams, scores):
        rows = log_softmax(original(prompt + beam))[len(prompt) - 1 : -1]
        anew = sum(row[token] for row, token in zip(rows, beam))
        assert score == pytest.approx(anew, abs=20 * TOLERANCE)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_add_begins_new_sequences(opened, original):
    cache = LatentCache.create(opened, batch=1)
    cache.append(ROWS[0])
    cache.add(2)
    assert cache.lengths.tolist() == [5, 0, 0]
    check(cache.append([[7], *ROWS[1:]]), original, [[*ROWS[0], 7], *ROWS[1:]])


@pytest.mark.parametrize("lengths", [2, [5, 1, 3], [0, 2, 4], 0, 100])
def test_truncate(opened, original, lengths):
    cache = LatentCache.create(opened, batch=3)
    cache.append(ROWS)
    cache.truncate(lengths)
    each = np.broadcast_to(lengths, 3)
    texts = [row[:n] for row, n in zip(ROWS, each)]
    assert cache.lengths.tolist() == [len(text) for text in texts]
    more = [[20, 21], [22, 23], [24, 25]]
    check(cache.append(more), original, [a + b for a, b in zip(texts, more)])


def test_truncate_gives_rows_back(kept):
    cache = LatentCache.create(kept, batch=2, capacity=8)
    cache.append([[1] * 8, [2] * 3])
    cache.truncate(2)
    # The shorter row was padded on the left, so its first two tokens end at row 7.
    assert cache.rows == 7
    cache.truncate(0)
    assert cache.rows == 0


def test_growth_doubles_and_keeps_what_was_there(models, original):
    for layout in ("keep", "packed", "static"):
        cache = LatentCache.create(session(models[layout]), batch=2)
        assert cache.capacity == FIRST_ROWS
        text = (np.arange(FIRST_ROWS + 9) % 97).tolist()
        cache.append([text[:-9], text[:-9]])
        assert cache.capacity == FIRST_ROWS
        check(cache.append([text[-9:], text[-9:]]), original, [text, text])
        assert cache.capacity == 2 * FIRST_ROWS


def test_one_sequence_is_kept_once_and_in_place(models):
    """Past and present are the same memory, so a step costs the cache no second copy."""
    for layout in models:
        cache = LatentCache.create(session(models[layout]))
        per_row = sum(state.nbytes for state in cache._states) / cache.capacity
        assert per_row == _bytes_per_row()
        cache.append([1, 2, 3])
        before = [state.rows(3).ctypes.data for state in cache._states]
        content = [state.rows(3).copy() for state in cache._states]
        cache.append([4])
        assert [state.rows(4).ctypes.data for state in cache._states] == before
        for state, rows in zip(cache._states, content):
            np.testing.assert_array_equal(state.rows(4)[..., :3, :], rows)
            assert np.abs(state.rows(4)[..., 3, :]).max() > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_every_tensor_begins_with_a_cache_line(models, batch):
    """Rows across two lines each would cost the kernel a fifth of its speed."""
    for layout in models:
        cache = LatentCache.create(session(models[layout]), batch=batch)
        cache.append([[1, 2, 3]] * batch)
        for state in cache._states:
            assert state.past(3).data_ptr() % 64 == 0
            assert state.present(4).data_ptr() % 64 == 0


def _bytes_per_row() -> int:
    """Of float32 latent rows in every layer."""
    return sum(4 * site.geometry.latent_width for site in mla_opt.find(demo_model()))


def test_rows_that_are_not_valid_may_hold_anything(models, original):
    """Poison beyond the past: a buffer is read as far as it is filled."""
    cache = LatentCache.create(session(models["static:64"]), batch=3)
    cache.append(ROWS)
    for state in cache._states:
        state.rows(64)[..., cache.rows :, :] = np.nan
    check(cache.append([[1], [2], [3]]), original, [[*row, i + 1] for i, row in enumerate(ROWS)])


@pytest.mark.parametrize("batch", [1, 3])
def test_saved_and_loaded(opened, original, tmp_path, batch):
    cache = LatentCache.create(opened, batch=batch)
    cache.append(ROWS[:batch])
    cache.pending = tuple(np.array([40 + i]) for i in range(batch))
    path = tmp_path / "conversation.npz"
    cache.save(path)
    loaded = LatentCache.load(path, opened)
    assert loaded.lengths.tolist() == cache.lengths.tolist()
    texts = [[*row, 40 + i, 7] for i, row in enumerate(ROWS[:batch])]
    check(loaded.append([[7]] * batch), original, texts)
    with pytest.raises(InputError, match="exists already"):
        cache.save(path)
    cache.save(path, force=True)


def test_a_failed_save_leaves_the_old_file(kept, tmp_path, monkeypatch):
    cache = LatentCache.create(kept)
    cache.append([1, 2])
    path = tmp_path / "conversation.npz"
    cache.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda stream, **_: stream.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.save(path, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_cache_of_this_model_are_refused(kept, models, tmp_path):
    path = tmp_path / "cache.npz"
    LatentCache.create(kept).save(path)
    with pytest.raises(InputError, match="are not of the names, types and sizes"):
        LatentCache.load(path, session(models["packed"]))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cache\.npz: is (no saved|a damaged) cache"):
            LatentCache.load(path, kept)
    np.savez(path, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    with pytest.raises(InputError, match="is no saved cache"):
        LatentCache.load(path, kept)
    np.savez(path, header=np.array([object()]))
    with pytest.raises(InputError, match=r"is (no saved|a damaged) cache"):
        LatentCache.load(path, kept)
    with pytest.raises(InputError, match="cannot be read"):
        LatentCache.load(tmp_path / "missing.npz", kept)


def test_a_cache_of_other_weights_is_refused(kept, models, tmp_path):
    path = tmp_path / "cache.npz"
    LatentCache.create(kept).save(path)
    other = ir.from_proto(ir.to_proto(models["keep"]))
    weight = max(other.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
    weight.const_value = ir.tensor(weight.const_value.numpy() + 1, name=weight.name)
    with pytest.raises(InputError, match="of other weights"):
        LatentCache.load(path, session(other))


def test_what_cannot_be_is_refused(kept, models):
    cache = LatentCache.create(kept, batch=2, capacity=6)
    cache.append([[1, 2], [3]])
    before = cache.lengths.tolist()
    with pytest.raises(InputError, match="7 rows do not fit in a cache of 6, of which 2 are used"):
        cache.append([[1] * 5, [2]])
    with pytest.raises(InputError, match="holds 2 sequences, but tokens of 1"):
        cache.append([1])
    with pytest.raises(InputError, match="no tokens to append"):
        cache.append([[], []])
    with pytest.raises(InputError, match="no sequence 2; the cache holds 0 to 1"):
        cache.select([0, 2])
    with pytest.raises(InputError, match="by their numbers"):
        cache.select([])
    with pytest.raises(InputError, match="0 or more, not -1"):
        cache.truncate(-1)
    with pytest.raises(InputError, match="one for each of 2"):
        cache.truncate([1, 2, 3])
    with pytest.raises(InputError, match="at least 1, not 0"):
        cache.add(0)
    assert cache.lengths.tolist() == before
    with pytest.raises(InputError, match="buffers of 64 rows, not 32"):
        LatentCache.create(session(models["static:64"]), capacity=32)
    with pytest.raises(InputError, match="at least 1 row"):
        LatentCache.create(kept, capacity=0)
    with pytest.raises(InputError, match="takes 1 sequence or more, not 0"):
        LatentCache.create(kept, batch=0)
    with pytest.raises(InputError, match="is no optimized model; run `mla-opt optimize`"):
        LatentCache.create(demo_model())
