"""The server and the client of OpenAI, by HTTP; needs FastAPI, uvicorn and the client.

python tests/integrations/run_openai.py

Says nothing if all is well.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import uvicorn

import mla_opt
from mla_opt.integrations.openai import Characters, openai_app
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import generate, session
from mla_opt.runtimes.onnxruntime.batching import BatchFullError, ContinuousBatch
from mla_opt.verification.running import RunError

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_openai.py"
TEXT = Characters()
REQUESTS, PLACES, ROWS = 64, 6, 128


async def main() -> None:
    opened = session(mla_opt.optimize(demo_model(), cache="static", verify=False).model)
    batch = ContinuousBatch.create(opened, sequences=PLACES, rows=ROWS)
    config = uvicorn.Config(openai_app(batch, TEXT, "demo"), port=0, log_level="warning")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run)
    thread.start()
    while not serving.started:
        await asyncio.sleep(0.05)
    (port,) = (each.getsockname()[1] for each in serving.servers[0].sockets)
    client = client_of(port)
    try:
        assert [each.id async for each in await client.models.list()] == ["demo"]
        await many_at_once(client, opened)
        await streams(client, opened)
        await chats(client, opened)
        await ends(client, opened)
        await refusals(client)
        await full(client, batch)
        await steps_that_fail(client, batch)
        other_paths(port)
        await who_hangs_up_gives_the_place_back(client, batch)
    finally:
        serving.should_exit = True
        thread.join()
    await the_example(opened)


def client_of(port: int):
    base = f"http://127.0.0.1:{port}/v1"
    return openai.AsyncOpenAI(base_url=base, api_key="-", max_retries=0)


def alone(opened, prompt: list[int], count: int) -> list[int]:
    return generate(opened, prompt, max_new_tokens=count).tokens[0].tolist()


async def many_at_once(client, opened) -> None:
    """More than there is room for; each says what its prompt says alone."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 112, rng.integers(1, 60)).tolist() for _ in range(REQUESTS)]
    counts = [int(count) for count in rng.integers(1, 40, REQUESTS)]
    answers = await asyncio.gather(
        *(
            client.completions.create(model="demo", prompt=p, max_tokens=n, temperature=0)
            for p, n in zip(prompts, counts)
        )
    )
    for prompt, count, answer in zip(prompts, counts, answers):
        (choice,) = answer.choices
        assert choice.text == TEXT.decode(alone(opened, prompt, count))
        assert choice.finish_reason == "length"
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == count
        assert answer.usage.total_tokens == len(prompt) + count


async def streams(client, opened) -> None:
    given = {"model": "demo", "prompt": "What is latent?", "max_tokens": 20, "temperature": 0}
    parts = [part async for part in await client.completions.create(**given, stream=True)]
    said = "".join(part.choices[0].text for part in parts)
    assert said == TEXT.decode(alone(opened, TEXT.encode(given["prompt"]), 20))
    assert [part.choices[0].finish_reason for part in parts] == [None] * 19 + ["length"]
    drawn = given | {"temperature": 1.5, "seed": 5, "top_p": 0.9}
    first, second = [(await client.completions.create(**drawn)).choices[0].text for _ in range(2)]
    assert first == second != said


async def chats(client, opened) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    given = {"model": "demo", "messages": messages, "max_completion_tokens": 9, "temperature": 0}
    prompt = TEXT.encode("system: Be brief. user: Hi! ")
    answer = await client.chat.completions.create(**given)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == TEXT.decode(alone(opened, prompt, 9))
    parts = [part async for part in await client.chat.completions.create(**given, stream=True)]
    said = "".join(part.choices[0].delta.content for part in parts)
    assert said == answer.choices[0].message.content
    del given["max_completion_tokens"]
    longest = await client.chat.completions.create(**given)
    assert longest.usage.total_tokens == ROWS + 1


async def ends(client, opened) -> None:
    """The token that ends a text is not part of it."""
    said = TEXT.decode(alone(opened, [8, 97], 20))
    given = {"model": "demo", "prompt": [8, 97], "max_tokens": 20, "temperature": 0}
    answer = await client.completions.create(**given, stop=[said[5]])
    assert answer.choices[0].text == said[: said.index(said[5])]
    assert answer.choices[0].finish_reason == "stop"


async def refusals(client) -> None:
    async def refused(kind, message, **given):
        with pytest.raises(kind, match=message):
            await client.completions.create(**{"model": "demo", "prompt": [1]} | given)

    await refused(openai.NotFoundError, "no model 'gpt'", model="gpt")
    await refused(openai.BadRequestError, "rows", max_tokens=ROWS + 1)
    await refused(openai.BadRequestError, "token id 400", prompt=[400])
    await refused(openai.BadRequestError, "max_new_tokens must be at least 1", max_tokens=0)
    await refused(openai.BadRequestError, "best_of", best_of=2)
    await refused(openai.BadRequestError, "temperature", temperature="hot")
    await refused(openai.BadRequestError, "one token of this model", stop="two")


@contextmanager
def instead(batch, name, function):
    """Let a batch do something else for a while."""
    setattr(batch, name, function)
    try:
        yield
    finally:
        delattr(batch, name)


async def full(client, batch) -> None:
    def check(prompt, sampling):
        raise BatchFullError("256 requests are waiting already; try again later")

    with (
        instead(batch, "check", check),
        pytest.raises(openai.RateLimitError, match="try again later"),
    ):
        await client.completions.create(model="demo", prompt=[1])


async def steps_that_fail(client, batch) -> None:
    """Whoever is under way is told, in a stream as well."""

    def step():
        raise RunError("no memory")

    given = {"model": "demo", "prompt": [1], "max_tokens": 4, "temperature": 0}
    with instead(batch, "step", step):
        with pytest.raises(openai.InternalServerError, match="no memory") as told:
            await client.completions.create(**given)
        assert told.value.type == "server_error"
        stream = await client.completions.create(**given, stream=True)
        with pytest.raises(openai.APIError, match="no memory"):
            await anext(aiter(stream))
    assert (await client.completions.create(**given)).usage.completion_tokens == 4


def other_paths(port: int) -> None:
    """They are refused as OpenAI does it, too."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/embeddings")
    with refused.value as answer:
        told = json.load(answer)["error"]
    assert (refused.value.code, told["message"]) == (404, "Not Found")
    assert told["type"] == "invalid_request_error"


async def who_hangs_up_gives_the_place_back(client, batch) -> None:
    """Long before all that was asked for is said, as steps are slow here."""
    step = batch.step
    given = {"model": "demo", "prompt": [1], "max_tokens": ROWS}
    with instead(batch, "step", lambda: time.sleep(0.05) or step()):
        for _ in range(2 * PLACES):
            stream = await client.completions.create(**given, stream=True)
            await anext(aiter(stream))
            await stream.close()
        await nothing_runs(batch)
        with pytest.raises(openai.APITimeoutError):
            await client.completions.create(**given, timeout=0.4)
        await nothing_runs(batch)


async def nothing_runs(batch) -> None:
    for _ in range(100):
        if not batch.running:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"still running: {batch.running}")


async def the_example(opened) -> None:
    """As a program, without a model of one's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLE), "--port", str(port), "--rows", str(ROWS)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **quiet) as server:
        try:
            while "Uvicorn running on" not in (line := server.stderr.readline()):
                assert line, "the example ended"
            given = {"model": "demo", "prompt": [8, 97], "max_tokens": 5, "temperature": 0}
            answer = await client_of(port).completions.create(**given)
            assert answer.choices[0].text == TEXT.decode(alone(opened, [8, 97], 5))
        finally:
            server.terminate()


if __name__ == "__main__":
    asyncio.run(main())
