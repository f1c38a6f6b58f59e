"""Between texts and tokens: what the server asks of a tokenizer, and two that answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

#: A message of a chat: its ``role``, and its ``content``.
Said = Mapping[str, str]


class Tokenizer(Protocol):
    """What the server asks of a tokenizer."""

    @property
    def ends(self) -> Sequence[int]:
        """Tokens that end every answer."""

    def prompt(self, text: str) -> list[int]:
        """The tokens of a whole prompt, with those that a sequence begins with."""

    def chat(self, messages: Sequence[Said]) -> list[int]:
        """The tokens of a chat, up to where the next answer begins."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, and no others."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; a character that is not whole yet is U+FFFD."""


class Characters:
    """For a model without a tokenizer, such as `mla_opt.models.demo_model`.

    Token ``i`` is one character, of 112; any other character is taken for a space.
    """

    alphabet = "".join(map(chr, range(32, 127))) + "äöüßåæøñçéèêàâîôû"
    ends: Sequence[int] = ()

    def prompt(self, text: str) -> list[int]:
        """The tokens of the text: a sequence begins with no others."""
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """One token for each character."""
        return [max(self.alphabet.find(character), 0) for character in text]

    def chat(self, messages: Sequence[Said]) -> list[int]:
        """Every message behind the name of its role."""
        return self.encode("".join(f"{each['role']}: {each['content']} " for each in messages))

    def decode(self, tokens: Sequence[int]) -> str:
        """One character for each token."""
        return "".join(self.alphabet[token] for token in tokens)


class TransformersTokenizer:
    """One that transformers saved in a folder, with its template for chats."""

    def __init__(self, folder: Path | str) -> None:
        """Raises what transformers raises where there is no tokenizer."""
        from transformers import AutoTokenizer

        self._inner: Any = AutoTokenizer.from_pretrained(folder)
        end = self._inner.eos_token_id
        self.ends: Sequence[int] = () if end is None else (end,)

    def prompt(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer puts around a text."""
        return list(self._inner.encode(text))

    def chat(self, messages: Sequence[Said]) -> list[int]:
        """As the template of the tokenizer has it."""
        given = [dict(each) for each in messages]
        options = {"add_generation_prompt": True, "return_dict": False}
        return list(self._inner.apply_chat_template(given, **options))

    def encode(self, text: str) -> list[int]:
        """Without special tokens."""
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Without the text of special tokens."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))
