"""Generate tokens with an optimized model: a batch of ragged prompts, a second turn, beams.

    python examples/generate_text.py [MODEL.onnx]

Tokens are numbers here; a tokenizer such as that of `transformers` makes them from text and back.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import mla_opt
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import LatentCache, generate, session

PROMPTS = [[3, 14, 15, 92, 65], [8, 97], [9, 32, 38, 46]]


def main(path: str | Path) -> None:
    model = mla_opt.optimize(path, cache="static", verify=False).model
    opened = session(model)

    print("three prompts of different lengths:")
    result = generate(
        opened,
        PROMPTS,
        max_new_tokens=8,
        stream=lambda step: print(" ", *(f"{token:4d}" for token in step)),
    )

    print("the next turn goes on from the cache:")
    result = generate(opened, [[1, 2], [3], [4, 5, 6]], max_new_tokens=4, cache=result.cache)
    for tokens in result.tokens:
        print("  ", tokens.tolist())

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "conversation.npz"
        result.cache.save(file)
        again = LatentCache.load(file, opened)
        print(f"saved and read again: {again.lengths.tolist()} tokens, {file.stat().st_size} bytes")

    print("the best of 4 beams:", beam_search(opened, PROMPTS[0], width=4, steps=6))


def beam_search(opened, prompt: list[int], width: int, steps: int) -> list[int]:
    cache = LatentCache.create(opened)
    beams, scores = [[]], np.zeros(1)
    logits = cache.append(prompt)
    for _ in range(steps):
        total = scores[:, None] + logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        parents, chosen = np.unravel_index(np.argsort(-total, axis=None)[:width], total.shape)
        scores = total[parents, chosen]
        beams = [[*beams[parent], int(token)] for parent, token in zip(parents, chosen)]
        cache.select(parents)
        logits = cache.append(chosen[:, None])
    return beams[0]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else demo_model())
