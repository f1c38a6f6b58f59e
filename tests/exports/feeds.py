"""Inputs of any size for a `FlatCausalLM` and for the graphs exported from it."""

from __future__ import annotations

import numpy as np

from tests.exports.flat import CacheTensor

Feeds = dict[str, np.ndarray]


def token_feeds(
    batch: int, query: int, past: int, *, left_padding: int, vocab: int, seed: int
) -> Feeds:
    """Random tokens, with the first `left_padding` positions of row 0 masked out."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, past + query), dtype=np.int64)
    mask[0, :left_padding] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return {
        "input_ids": rng.integers(0, vocab, (batch, query), dtype=np.int64),
        "attention_mask": mask,
        "position_ids": np.ascontiguousarray(positions[:, past:]),
    }


def past_feeds(
    layout: tuple[CacheTensor, ...], batch: int, past: int, *, dtype: str, seed: int
) -> Feeds:
    """Past tensors as wide as the model makes them, unit normal like normed latents are."""
    rng = np.random.default_rng(seed + 1)
    return {
        tensor.name("past"): rng.standard_normal(tensor.sized(batch, past)).astype(dtype)
        for tensor in layout
    }


def next_feeds(feeds: Feeds, outputs: Feeds) -> Feeds:
    """The next greedy decode step: the token chosen last, and present tensors as past ones."""
    batch = feeds["input_ids"].shape[0]
    mask = np.concatenate([feeds["attention_mask"], np.ones((batch, 1), dtype=np.int64)], axis=1)
    grown = {
        name.replace("present.", "past."): value
        for name, value in outputs.items()
        if name != "logits"
    }
    return {
        "input_ids": outputs["logits"][:, -1].argmax(-1)[:, None].astype(np.int64),
        "attention_mask": mask,
        "position_ids": (mask.sum(axis=1) - 1)[:, None],
        **grown,
    }
