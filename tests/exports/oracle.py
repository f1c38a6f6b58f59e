"""The truth: the model code itself, run by PyTorch on the same seeded weights.

Feeds and outputs carry the names of the exported graph (`names`), so that they go to ONNX Runtime
as they are.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.exports import cache, expanded_cache, exporters, feeds, names
from tests.exports.families import FAMILIES
from tests.exports.feeds import Feeds
from tests.exports.flat import CacheTensor, run_flat
from tests.exports.patches import patches_for
from tests.exports.spec import ExportSpec


def example_feeds(
    spec: ExportSpec, batch: int, query: int, past: int, *, left_padding: int = 0, seed: int = 0
) -> Feeds:
    """Random inputs of the exported graph for any sizes, `past` 0 included.

    Args:
        left_padding: Masked positions at the start of row 0. Graphs without a mask input take none.
    """
    if not names.has_input(spec, "attention_mask"):
        left_padding = 0
    vocab = FAMILIES[spec.family].config().vocab_size
    flat = feeds.token_feeds(batch, query, past, left_padding=left_padding, vocab=vocab, seed=seed)
    flat |= feeds.past_feeds(cache_tensors(spec), batch, past, dtype=spec.dtype, seed=seed)
    return {
        names.exported_name(spec, name): value
        for name, value in flat.items()
        if names.has_input(spec, name)
    }


def cache_tensors(spec: ExportSpec) -> tuple[CacheTensor, ...]:
    """The tensors a spec's model caches; none without a cache."""
    if not spec.cache:
        return ()
    return _expanded_layout(spec) if spec.expanded else _model(spec).layout


def run_torch(spec: ExportSpec, feed: Feeds) -> Feeds:
    """The outputs PyTorch computes for a feed of the exported graph."""
    flat = _flat_feeds(spec, feed)
    if spec.expanded:
        outputs = _run_in_other_interpreter(spec, flat)
    else:
        with patches_for(FAMILIES[spec.family].model_type):
            outputs = run_flat(_model(spec), flat)
    return {names.exported_name(spec, name): value for name, value in outputs.items()}


def run_onnx(session: Any, feed: Feeds) -> Feeds:
    """The outputs of an ONNX Runtime session, by name."""
    outputs = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(outputs, {name: value for name, value in feed.items() if name in wanted})
    return dict(zip(outputs, results, strict=True))


def next_feeds(spec: ExportSpec, feed: Feeds, outputs: Feeds) -> Feeds:
    """The feed of the next greedy decode step."""
    flat = feeds.next_feeds(_flat_feeds(spec, feed), _flat_outputs(spec, outputs))
    return {
        names.exported_name(spec, name): value
        for name, value in flat.items()
        if names.has_input(spec, name)
    }


def difference(spec: ExportSpec, feed: Feeds, left: Feeds, right: Feeds) -> float:
    """Largest absolute difference between two results, over all outputs, where there are tokens.

    At masked positions a model may compute anything: implementations differ in what a row attends
    that may attend nothing, and nobody reads the result.
    """
    mask = _flat_feeds(spec, feed)["attention_mask"].astype(bool)
    return max(_distance(left[name], right[name], mask) for name in left)


def _distance(left: np.ndarray, right: np.ndarray, mask: np.ndarray) -> float:
    """Both hold their tokens, which are the last ones of the mask, along axis -2."""
    if left.shape != right.shape:
        return float("inf")
    rows = mask[:, -left.shape[-2] :]
    gap = np.moveaxis(left.astype(np.float64) - right, -2, 1)[rows]
    return float(np.abs(gap).max(initial=0.0))


@functools.cache
def _model(spec: ExportSpec) -> Any:
    return exporters.flat_model(spec)


def _flat_feeds(spec: ExportSpec, feed: Feeds) -> Feeds:
    """A feed under the names of `flat`, with a mask of ones where the graph takes none."""
    layout = cache_tensors(spec)
    batch, query = feed["input_ids"].shape
    back = {names.exported_name(spec, tensor.name("past")): tensor for tensor in layout}
    flat = {
        back[name].name("past") if name in back else name: value for name, value in feed.items()
    }
    for tensor in layout:
        flat.setdefault(tensor.name("past"), np.zeros(tensor.sized(batch, 0), dtype=spec.dtype))
    past = flat[layout[0].name("past")].shape[-2] if layout else 0
    flat.setdefault("attention_mask", np.ones((batch, past + query), dtype=np.int64))
    return flat


def _flat_outputs(spec: ExportSpec, outputs: Feeds) -> Feeds:
    back = {
        names.exported_name(spec, t.name("present")): t.name("present") for t in cache_tensors(spec)
    }
    return {back.get(name, name): value for name, value in outputs.items()}


def _expanded_layout(spec: ExportSpec) -> tuple[CacheTensor, ...]:
    config = FAMILIES[spec.family].config()
    heads = config.num_attention_heads
    widths = {
        "keys": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "values": config.v_head_dim,
    }
    return tuple(
        CacheTensor(layer, part, (1, heads, 1, width))
        for layer in range(config.num_hidden_layers)
        for part, width in widths.items()
    )


def _run_in_other_interpreter(spec: ExportSpec, flat: Feeds) -> Feeds:
    with tempfile.TemporaryDirectory() as folder:
        feed, outputs = Path(folder, "feeds.npz"), Path(folder, "outputs.npz")
        np.savez(feed, **flat)  # type: ignore[arg-type]
        module = expanded_cache.__name__
        cache.run_module(
            expanded_cache.interpreter(), module, "run", spec.to_json(), str(feed), str(outputs)
        )
        with np.load(outputs) as file:
            return dict(file)
