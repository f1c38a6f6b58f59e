"""An OpenAI-compatible server with continuous batches: requests join and leave a running one.

    pip install fastapi uvicorn
    python examples/serve_openai.py [MODEL.onnx] [--tokenizer FOLDER] [--port 8000]

MODEL.onnx is one that `mla-opt optimize --cache static` wrote, FOLDER what transformers saved a
tokenizer in. Without a model the small one serves that comes with the package: its weights are
random, and each of its tokens is a character.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

import mla_opt
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import session
from mla_opt.runtimes.onnxruntime.batching import (
    AsyncBatch,
    BatchFullError,
    ContinuousBatch,
    Sampling,
)


class Body(BaseModel, extra="forbid"):
    """What may be asked for; anything else is refused, and not passed over."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    n: Literal[1] = 1
    user: str | None = None


class Completion(Body):
    prompt: str | list[int]


class Message(BaseModel):
    role: str
    content: str


class Chat(Body):
    messages: list[Message]


class Characters:
    """Text for a model that has no tokenizer: token i is one character."""

    alphabet = "".join(map(chr, range(32, 127))) + "äöüßåæøñçéèêàâîôû"
    ends: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [max(self.alphabet.find(character), 0) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.alphabet[token] for token in tokens)

    def chat(self, messages: list[Message]) -> list[int]:
        return self.encode("".join(f"{each.role}: {each.content} " for each in messages))


class Tokenizer:
    """One of transformers, with its template for chats."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(folder)
        self.ends = () if self.inner.eos_token_id is None else (self.inner.eos_token_id,)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, tokens: list[int]) -> str:
        return self.inner.decode(tokens, skip_special_tokens=True)

    def chat(self, messages: list[Message]) -> list[int]:
        given = [each.model_dump() for each in messages]
        options = {"add_generation_prompt": True, "return_dict": False}
        return self.inner.apply_chat_template(given, **options)


def server(batch: ContinuousBatch, tokenizer: Characters | Tokenizer, name: str) -> FastAPI:
    service = AsyncBatch(batch)

    @asynccontextmanager
    async def running(app):
        async with service:
            yield

    app = FastAPI(lifespan=running)

    def submit(body: Body, prompt: list[int], usual: int):
        if body.model != name:
            raise HTTPException(404, f"there is no model {body.model!r}; this is {name!r}")
        texts = [body.stop] if isinstance(body.stop, str) else body.stop or []
        stops = [tokenizer.encode(text) for text in texts]
        if any(len(stop) != 1 for stop in stops):
            raise HTTPException(400, "stop: each has to be one token of this model")
        stop_tokens = [*tokenizer.ends, *(token for (token,) in stops)]
        limit = next(
            (n for n in (body.max_completion_tokens, body.max_tokens) if n is not None), usual
        )
        how = Sampling(limit, stop_tokens, body.temperature, body.top_k, body.top_p, body.seed)
        return service.submit(prompt, how)

    async def pieces(stream):
        """Text as soon as its characters are whole, tokens so far, and the reason of the end."""
        tokens, sent, said = [], 0, 0
        try:
            async for new in stream:
                said += 1
                tokens += [] if new.finish_reason == "stop" else [new.token]
                text = tokenizer.decode(tokens)
                if new.finish_reason or not text.endswith("\ufffd"):
                    yield text[sent:], said, new.finish_reason
                    sent = len(text)
        finally:
            stream.cancel()  # who has gone gives the place back

    async def answer(request: Request, body: Body, prompt: list[int], usual: int, shape):
        stream = submit(body, prompt, usual)
        head = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": name}

        async def events():
            try:
                async for text, _, reason in pieces(stream):
                    yield f"data: {json.dumps(head | shape(text, reason, True))}\n\n"
            except mla_opt.MlaOptError as error:
                yield f"data: {json.dumps({'error': {'message': str(error)}})}\n\n"
            yield "data: [DONE]\n\n"

        if body.stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        parts = []
        async for part in pieces(stream):
            parts.append(part)
            if await request.is_disconnected():
                stream.cancel()
                break
        _, said, reason = parts[-1]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": said}
        usage["total_tokens"] = len(prompt) + said
        return head | shape("".join(text for text, *_ in parts), reason, False) | {"usage": usage}

    def completion(text: str, reason: str | None, part: bool) -> dict:
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        return {"object": "text_completion", "choices": [choice]}

    def chat_completion(text: str, reason: str | None, part: bool) -> dict:
        said = {"delta" if part else "message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **said, "finish_reason": reason}
        return {"object": f"chat.completion{'.chunk' * part}", "choices": [choice]}

    @app.get("/v1/models")
    def models():
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "mla-opt"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/completions")
    async def completions(request: Request, body: Completion):
        text = body.prompt
        prompt = tokenizer.encode(text) if isinstance(text, str) else text
        return await answer(request, body, prompt, 16, completion)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: Chat):
        prompt = tokenizer.chat(body.messages)
        room = max(batch.rows - len(prompt) + 1, 1)
        return await answer(request, body, prompt, room, chat_completion)

    def refused(request: Request, error: Exception) -> JSONResponse:
        statuses = {BatchFullError: 429, mla_opt.InputError: 400, RequestValidationError: 400}
        status = next((code for kind, code in statuses.items() if isinstance(error, kind)), 500)
        status, told = getattr(error, "status_code", status), getattr(error, "detail", str(error))
        return JSONResponse({"error": {"message": told, "type": "invalid_request_error"}}, status)

    for kind in (mla_opt.MlaOptError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refused)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if given.model is None:
        model = mla_opt.optimize(demo_model(), cache="static", verify=False).model
    elif given.tokenizer is None:
        parser.error("a model needs its --tokenizer")
    else:
        model = given.model
    batch = ContinuousBatch.create(session(model), sequences=given.sequences, rows=given.rows)
    tokenizer = Tokenizer(given.tokenizer) if given.tokenizer else Characters()
    name = given.model.stem if given.model else "demo"
    uvicorn.run(server(batch, tokenizer, name), port=given.port)


if __name__ == "__main__":
    main()
