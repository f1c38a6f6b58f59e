"""What clients may ask for, by the names that OpenAI gave it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Request(BaseModel, extra="forbid"):
    """What every kind of request may have; anything else is refused, and not passed over."""

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

    def limit(self, usual: int) -> int:
        """How many new tokens are asked for; ``usual`` where nothing is said."""
        given = (self.max_completion_tokens, self.max_tokens)
        return next((limit for limit in given if limit is not None), usual)

    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(Request):
    """A text to go on from, or its tokens."""

    prompt: str | list[int]


class Message(BaseModel):
    """What one side said in a chat."""

    role: str
    content: str


class ChatRequest(Request):
    """A chat to go on with."""

    messages: list[Message]
