"""One answer: whole, or piece by piece."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from mla_opt.errors import MlaOptError
from mla_opt.integrations.openai import shapes
from mla_opt.integrations.openai.pieces import Piece, pieces
from mla_opt.integrations.openai.text import Tokenizer
from mla_opt.runtimes.onnxruntime.batching import TokenStream


@dataclass(frozen=True, slots=True)
class Answer:
    """What one client is told.

    Attributes:
        stream: the tokens, as they come.
        tokenizer: makes text of them.
        shape: of the kind of answer that was asked for.
        head: what is the same in every piece.
        prompt_tokens: how many there were.
    """

    stream: TokenStream
    tokenizer: Tokenizer
    shape: shapes.Shape
    head: shapes.Json
    prompt_tokens: int

    async def whole(self, request: Request) -> JSONResponse:
        """Wait for all of it, for as long as the client does.

        Raises:
            RunError: the sequence cannot go on.
        """
        text, last = "", Piece("", 0, None)
        try:
            async for last in pieces(self.stream, self.tokenizer):
                text += last.text
                if await request.is_disconnected():
                    break
        finally:
            self.stream.cancel()  # who has gone gives the place back
        said = self.shape(text, last.finish_reason, False)
        return JSONResponse(self.head | said | shapes.usage(self.prompt_tokens, last.tokens))

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: the pieces, or what went wrong, and the word for the end."""
        try:
            async for piece in pieces(self.stream, self.tokenizer):
                yield _event(self.head | self.shape(piece.text, piece.finish_reason, True))
        except MlaOptError as error:
            yield _event(shapes.error(str(error), 500))
        yield "data: [DONE]\n\n"


class Events(StreamingResponse):
    """An answer piece by piece."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.events(), media_type="text/event-stream")
        self._stream = answer.stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that has gone, even before the first piece, gives the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.cancel()


def _event(content: shapes.Json) -> str:
    return f"data: {json.dumps(content)}\n\n"
