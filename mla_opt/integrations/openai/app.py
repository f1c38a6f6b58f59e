"""The paths of the server, and the batch behind them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from mla_opt.errors import InputError
from mla_opt.integrations.openai import requests, shapes
from mla_opt.integrations.openai.answers import Answer, Events
from mla_opt.integrations.openai.refusals import tell_refusals
from mla_opt.integrations.openai.text import Tokenizer
from mla_opt.runtimes.onnxruntime.batching import AsyncBatch, ContinuousBatch, Sampling

#: New tokens of a completion where nothing is said, as OpenAI has it.
COMPLETION_TOKENS = 16


def openai_app(batch: ContinuousBatch, tokenizer: Tokenizer, name: str) -> FastAPI:
    """Return the server of one model, for uvicorn or any other server of ASGI.

    It has ``/v1/models``, ``/v1/completions`` and ``/v1/chat/completions``. Requests join the batch
    and leave it while others run; the tokens of a client that hangs up are not made. While the app
    runs nobody else may use the batch. It asks nobody for a key.

    Clients are told errors in OpenAI's shape: 400 for a request that cannot be met, 404 for another
    model, 429 where too many wait already, 500 where a sequence cannot go on.

    Args:
        batch: where the sequences run.
        tokenizer: of the model of the batch.
        name: of the model, for clients.
    """
    service = AsyncBatch(batch)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app, paths = FastAPI(lifespan=running), _Paths(service, tokenizer, name, batch.rows)
    app.add_api_route("/v1/models", paths.models, methods=["GET"])
    app.add_api_route("/v1/completions", paths.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", paths.chat_completions, methods=["POST"])
    tell_refusals(app)
    return app


@dataclass(frozen=True, slots=True)
class _Paths:
    """What is done for each path."""

    service: AsyncBatch
    tokenizer: Tokenizer
    name: str
    rows: int

    async def models(self) -> JSONResponse:
        return JSONResponse(shapes.models(self.name))

    async def completions(self, request: Request, asked: requests.CompletionRequest) -> Response:
        given = asked.prompt
        prompt = self.tokenizer.prompt(given) if isinstance(given, str) else given
        answer = self._begin(asked, prompt, COMPLETION_TOKENS, shapes.completion)
        return Events(answer) if asked.stream else await answer.whole(request)

    async def chat_completions(self, request: Request, asked: requests.ChatRequest) -> Response:
        prompt = self.tokenizer.chat([each.model_dump() for each in asked.messages])
        room = max(self.rows - len(prompt) + 1, 1)
        answer = self._begin(asked, prompt, room, shapes.chat_completion)
        return Events(answer) if asked.stream else await answer.whole(request)

    def _begin(
        self, asked: requests.Request, prompt: list[int], usual: int, shape: shapes.Shape
    ) -> Answer:
        """Put a sequence into the batch, or into the line for it."""
        if asked.model != self.name:
            raise HTTPException(404, f"there is no model {asked.model!r}; this is {self.name!r}")
        stream = self.service.submit(prompt, self._sampling(asked, usual))
        head = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": self.name}
        return Answer(stream, self.tokenizer, shape, head, len(prompt))

    def _sampling(self, asked: requests.Request, usual: int) -> Sampling:
        return Sampling(
            asked.limit(usual),
            [*self.tokenizer.ends, *map(self._stop, asked.stops())],
            asked.temperature,
            asked.top_k,
            asked.top_p,
            asked.seed,
        )

    def _stop(self, text: str) -> int:
        tokens = self.tokenizer.encode(text)
        if len(tokens) != 1:
            raise InputError(f"stop: {text!r} has to be one token of this model")
        return tokens[0]
