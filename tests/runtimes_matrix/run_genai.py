"""Greedy tokens of onnxruntime-genai: ``run_genai.py FOLDER COUNT TOKEN...`` prints them."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime_genai as genai


def main(folder: str, count: int, prompt: list[int]) -> None:
    model = genai.Model(folder)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    print(*tokens)


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    count, *prompt = map(int, numbers)
    main(folder, count, prompt)
