"""An OpenAI-compatible server with continuous batches: requests join and leave a running one.

    pip install '.[serve]'
    python examples/serve_openai.py [MODEL.onnx] [--tokenizer FOLDER] [--port 8000]

MODEL.onnx is one that `mla-opt optimize --cache static` wrote, FOLDER what transformers saved a
tokenizer in. Without a model the small one serves that comes with the package: its weights are
random, and each of its tokens is a character.
"""

import argparse
from pathlib import Path

import uvicorn

import mla_opt
from mla_opt.integrations.openai import Characters, TransformersTokenizer, openai_app
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import session
from mla_opt.runtimes.onnxruntime.batching import ContinuousBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if (given.model is None) != (given.tokenizer is None):
        parser.error("a model and its --tokenizer go together")
    if given.model is None:
        model = mla_opt.optimize(demo_model(), cache="static", verify=False).model
        tokenizer, name = Characters(), "demo"
    else:
        model, tokenizer = given.model, TransformersTokenizer(given.tokenizer)
        name = given.model.stem
    batch = ContinuousBatch.create(session(model), sequences=given.sequences, rows=given.rows)
    uvicorn.run(openai_app(batch, tokenizer, name), port=given.port)


if __name__ == "__main__":
    main()
