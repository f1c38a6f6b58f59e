"""Text of an answer, as its tokens come."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from mla_opt.integrations.openai.text import Tokenizer
from mla_opt.runtimes.onnxruntime.batching import BatchToken

#: What stands for a character of which some bytes are missing.
NOT_WHOLE = "\ufffd"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: what is new in it.
        tokens: how many tokens the answer has until here, the one that ends it among them.
        finish_reason: ``stop`` or ``length`` in the last piece.
    """

    text: str
    tokens: int
    finish_reason: str | None


async def pieces(stream: AsyncIterable[BatchToken], tokenizer: Tokenizer) -> AsyncIterator[Piece]:
    """Give text as soon as its characters are whole; the token that ends an answer has none.

    Raises:
        RunError: the sequence cannot go on.
    """
    tokens: list[int] = []
    count = sent = 0
    async for new in stream:
        count += 1
        if new.finish_reason != "stop":
            tokens.append(new.token)
        text = tokenizer.decode(tokens)
        if new.finish_reason or not text.endswith(NOT_WHOLE):
            yield Piece(text[sent:], count, new.finish_reason)
            sent = len(text)
