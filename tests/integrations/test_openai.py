"""The server for OpenAI's API: its text, and what OpenAI's own client hears of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mla_opt.integrations.openai import Characters, TransformersTokenizer
from mla_opt.integrations.openai.pieces import pieces
from mla_opt.runtimes.onnxruntime.batching import BatchToken
from tests.exports.cache import ROOT

PACKAGES = ("openai==3.57.0", "fastapi==0.165.0", "uvicorn==0.54.0")


@pytest.mark.other_runtimes
def test_each_request_hears_what_its_prompt_says_alone(tmp_path: Path) -> None:
    """64 requests at once, and the example."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path)]
    subprocess.run([*install, *PACKAGES], check=True)
    script = Path(__file__).parent / "run_openai.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_tokenizers_need_no_fastapi() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; sys.modules['pydantic'] = None;"
        "from mla_opt.integrations import openai; openai.Characters; openai.openai_app"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ModuleNotFoundError: import of fastapi halted" in done.stderr


# Text


def test_characters() -> None:
    text = Characters()
    assert text.decode(text.encode("Grüße, £5")) == "Grüße,  5"
    assert text.decode(text.chat([{"role": "user", "content": "Hi!"}])) == "user: Hi! "


@pytest.fixture
def saved(tmp_path: Path) -> TransformersTokenizer:
    """Words, with a token before each prompt, as most models of this kind have it."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "?", "user", "assistant", "hello", "there"]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    tokenizer.chat_template = (
        "<s> {% for each in messages %}{{ each.role }} {{ each.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    return TransformersTokenizer(tmp_path)


def test_a_tokenizer_of_transformers(saved: TransformersTokenizer) -> None:
    assert saved.prompt("hello there") == [0, 5, 6]
    assert saved.encode("there") == [6], "a text that ends an answer is one token"
    assert saved.chat([{"role": "user", "content": "hello"}]) == [0, 3, 5, 4]
    assert saved.decode([0, 5, 6, 1]) == "hello there"
    assert saved.ends == (1,)


class Bytes(Characters):
    """Tokens of which several make one character."""

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")


async def stream(tokens: bytes, reason: str) -> AsyncIterator[BatchToken]:
    for at, token in enumerate(tokens, 1):
        yield BatchToken(0, token, reason if at == len(tokens) else None)


def told(tokens: bytes, reason: str) -> list[tuple[str, int, str | None]]:
    async def all_of_it() -> list[tuple[str, int, str | None]]:
        said = pieces(stream(tokens, reason), Bytes())
        return [(each.text, each.tokens, each.finish_reason) async for each in said]

    return asyncio.run(all_of_it())


def test_characters_are_told_when_they_are_whole() -> None:
    assert told("aé€".encode(), "length") == [("a", 1, None), ("é", 3, None), ("€", 6, "length")]
    assert told(b"a\xe2\x82", "length") == [("a", 1, None), ("\ufffd", 3, "length")]


def test_the_token_that_ends_an_answer_has_no_text() -> None:
    assert told(b"ab.", "stop") == [("a", 1, None), ("b", 2, None), ("", 3, "stop")]


# Answers


def test_who_has_gone_before_the_first_piece_gives_the_place_back() -> None:
    pytest.importorskip("fastapi")
    from starlette.requests import ClientDisconnect

    from mla_opt.integrations.openai import shapes
    from mla_opt.integrations.openai.answers import Answer, Events
    from mla_opt.runtimes.onnxruntime.batching import Sampling, TokenStream

    async def gone(*_: object) -> None:
        raise OSError("gone")

    async def answer() -> TokenStream:
        asked = TokenStream([1], Sampling(4))
        events = Events(Answer(asked, Characters(), shapes.completion, {}, 1))
        with pytest.raises(ClientDisconnect):
            await events({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone)
        return asked

    assert asyncio.run(answer()).cancelled
