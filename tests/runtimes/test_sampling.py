"""`Sampler`: draws follow the probabilities that temperature, top_k and top_p leave."""

from __future__ import annotations

import numpy as np
import pytest

from mla_opt.runtimes.sampling import Sampler
from mla_opt.verification.onnx.sessions import RunError

PROBABILITIES = np.array([0.05, 0.5, 0.15, 0.3])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
DRAWS = 20_000


def frequencies(**options) -> np.ndarray:
    sampler = Sampler(generator=np.random.default_rng(1), **options)
    drawn = sampler(np.broadcast_to(LOGITS, (DRAWS, 4)))
    return np.bincount(drawn, minlength=4) / DRAWS


def normalized(weights) -> np.ndarray:
    return np.asarray(weights) / np.sum(weights)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, PROBABILITIES),
        ({"temperature": 2.0}, normalized(np.sqrt(PROBABILITIES))),
        ({"temperature": 0.5}, normalized(PROBABILITIES**2)),
        ({"temperature": 1.0, "top_k": 2}, normalized([0, 0.5, 0, 0.3])),
        ({"temperature": 1.0, "top_k": 9}, PROBABILITIES),
        ({"temperature": 1.0, "top_p": 0.4}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, normalized([0, 0.5, 0, 0.3])),
        ({"temperature": 1.0, "top_p": 1.0}, PROBABILITIES),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 3}, normalized([0, 0.5, 0.15, 0.3])),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
    ],
)
def test_frequencies(options, expected):
    # Four standard deviations of a frequency near one half.
    assert np.abs(frequencies(**options) - expected).max() < 0.015


def test_the_first_of_equal_logits_counts():
    assert Sampler()(np.array([[0.0, 2.0, 2.0]])).tolist() == [1]


def test_rows_draw_for_themselves():
    """What a row says does not hang on its neighbours."""
    both = Sampler(1.0, generator=np.random.default_rng(3))(np.stack([LOGITS, LOGITS * 0]))
    alone = Sampler(1.0, generator=np.random.default_rng(3))(np.stack([LOGITS, LOGITS]))
    assert both[0] == alone[0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(wrong, temperature):
    logits = np.stack([LOGITS, LOGITS])
    logits[1, 2] = wrong
    with pytest.raises(RunError, match="no finite numbers"):
        Sampler(temperature)(logits)


def test_tokens_that_are_ruled_out_are_never_drawn():
    logits = np.array([[-np.inf, 0.0, -np.inf, 0.0]] * 100, np.float32)
    assert set(Sampler(1.0)(logits).tolist()) == {1, 3}
