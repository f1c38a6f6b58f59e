"""Text of a message that is no text: protobuf hands on bytes where they are no UTF-8."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from mla_opt.errors import InputError


def check_text(message: Message) -> None:
    """Check that every name, text and piece of metadata of a message is UTF-8.

    A message with other bytes can be read, and cannot be written again.

    Raises:
        InputError: one is not; the message names the field.
    """
    for kind, field, content in _texts(message):
        if isinstance(content, bytes):
            raise InputError(
                f"has a {field} in a {kind} that is no UTF-8 text: {content[:40]!r}; export it"
                " again"
            )


def _texts(message: Message) -> Iterator[tuple[str, str, object]]:
    """Every text of a message, with the names of its kind and its field; no depth stops it."""
    pending = [message]
    while pending:
        each = pending.pop()
        for field, value in each.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                pending.extend([value] if isinstance(value, Message) else value)
            elif field.type == FieldDescriptor.TYPE_STRING:
                single = isinstance(value, str | bytes)
                for text in (value,) if single else value:
                    yield each.DESCRIPTOR.name, field.name, text
