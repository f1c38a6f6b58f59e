"""Text of a message: whether it is text, and how much of it there is.

Protobuf hands on bytes where they are no UTF-8. Names, metadata and documentation become objects of
Python, several times over until a model is written, so there is a limit for them, far above what
exporters write: those that note the source of every node write 2 kB a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from mla_opt.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

MOST_TEXT = 256 << 20
"""Letters of all texts of a model."""

MOST_PARTS = 4_000_000
"""Messages in the message of a model: nodes, attributes, entries of metadata, shapes and so on."""

_PROSE = ("doc_string", "value")
"""Fields that may have lines, and whatever else: nobody is shown them."""

_EACH = 16
"""What a text counts for besides its letters: a short one takes memory, too."""

_REMEDY = "remove metadata_props, doc_string and value_info, which nothing needs, or export without"


def check_text(message: Message) -> None:
    """Check that every name, text and piece of metadata of a message is UTF-8, and not too much.

    A message with other bytes can be read, and cannot be written again.

    Names are shown to people, so they have no characters that a terminal would obey.

    Raises:
        InputError: one is not, and the message names the field; or all together are too much.
    """
    taken = 0
    for kind, field, content in _texts(message):
        taken += len(content) + _EACH
        if taken > MOST_TEXT:
            raise InputError(
                f"has more than {MOST_TEXT >> 20} MiB of names, metadata and documentation;"
                f" {_REMEDY}"
            )
        if isinstance(content, bytes):
            raise InputError(
                f"has a {field} in a {kind} that is no UTF-8 text: {content[:40]!r}; export it"
                " again"
            )
        if not content.isprintable() and field not in _PROSE and _CONTROL.search(content):
            raise InputError(
                f"has a {field} in a {kind} with control characters: {content[:40]!r}; rename it"
            )


def _texts(message: Message) -> Iterator[tuple[str, str, str | bytes]]:
    """Every text of a message, with the names of its kind and its field; no depth stops it."""
    pending, parts = [message], 0
    while pending:
        each = pending.pop()
        for field, value in each.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = [value] if isinstance(value, Message) else value
                parts += len(inner)
                _check_parts(parts)  # before there is an object for each of them
                pending.extend(inner)
            elif field.type == FieldDescriptor.TYPE_STRING:
                single = isinstance(value, str | bytes)
                for text in (value,) if single else value:
                    yield each.DESCRIPTOR.name, field.name, text


def _check_parts(count: int) -> None:
    if count > MOST_PARTS:
        raise InputError(f"has more than {MOST_PARTS} parts; {_REMEDY}")
