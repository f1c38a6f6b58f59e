"""What is sent, in the shapes that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
#: Makes the part of an answer that its kind decides: of its text, the reason of its end, and
#: whether it is one piece of many.
Shape = Callable[[str, str | None, bool], Json]


def completion(text: str, reason: str | None, piece: bool) -> Json:
    """What goes on from a prompt."""
    choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
    return {"object": "text_completion", "choices": [choice]}


def chat_completion(text: str, reason: str | None, piece: bool) -> Json:
    """What is said in a chat."""
    kind, part = ("chat.completion.chunk", "delta") if piece else ("chat.completion", "message")
    said = {"role": "assistant", "content": text}
    return {"object": kind, "choices": [{"index": 0, part: said, "finish_reason": reason}]}


def usage(prompt: int, answer: int) -> Json:
    """How many tokens there were."""
    counts = {"prompt_tokens": prompt, "completion_tokens": answer}
    return {"usage": {**counts, "total_tokens": prompt + answer}}


def models(name: str) -> Json:
    """The list of one model."""
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "mla-opt"}
    return {"object": "list", "data": [entry]}


def error(message: str, status: int) -> Json:
    """What went wrong, and whose fault it is."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
