"""`AsyncBatch`: requests that wait, are answered apart, given up, or fail together."""

from __future__ import annotations

import asyncio

import pytest

from mla_opt.errors import InputError
from mla_opt.runtimes.onnxruntime import session
from mla_opt.runtimes.onnxruntime.batching import (
    AsyncBatch,
    BatchFullError,
    ContinuousBatch,
    Sampling,
)
from mla_opt.verification.running import RunError

PROMPTS = [[3, 14, 15], [8, 97], [9, 32, 38, 46], [1], [5, 6]]


@pytest.fixture
def batch(models):
    return ContinuousBatch.create(session(models["static"]), sequences=2, rows=64)


async def tokens(stream) -> list[int]:
    return [new.token async for new in stream]


def test_each_request_hears_its_own(batch, greedy):
    async def serve():
        async with AsyncBatch(batch) as service:
            streams = [service.submit(prompt, Sampling(9)) for prompt in PROMPTS]
            return await asyncio.gather(*map(tokens, streams))

    assert asyncio.run(serve()) == [greedy(prompt, 9) for prompt in PROMPTS]
    assert batch.running == ()


def test_a_request_that_is_given_up_frees_its_place(batch, greedy):
    async def serve():
        async with AsyncBatch(batch) as service:
            given_up = [service.submit([1, 2], Sampling(60)) for _ in range(3)]
            for stream in given_up[:2]:
                await anext(stream)
            late = service.submit(PROMPTS[0], Sampling(3))
            for stream in given_up:
                stream.cancel()
            said = await tokens(late)
            return said, batch.running

    # Nobody but the late one was there at the end, and it did not wait for sixty tokens.
    assert asyncio.run(serve()) == (greedy(PROMPTS[0], 3), ())


def test_what_cannot_be_is_refused_at_once(batch):
    async def serve():
        async with AsyncBatch(batch, waiting=2) as service:
            with pytest.raises(InputError, match="take 128 rows, and there are 64"):
                service.submit([1] * 28, Sampling(101))
            streams = [service.submit([1], Sampling(60)) for _ in range(2)]
            with pytest.raises(BatchFullError, match="2 requests are waiting already"):
                service.submit([1], Sampling(1))
            streams[0].cancel()
            service.submit([1], Sampling(1))
        with pytest.raises(RuntimeError, match="is not running"):
            service.submit([1], Sampling(1))

    asyncio.run(serve())
    with pytest.raises(InputError, match="waiting must be at least 1"):
        AsyncBatch(batch, waiting=0)


def test_a_failure_ends_who_is_running_and_nobody_waits_for_ever(batch, greedy, monkeypatch):
    step = batch.step

    def failing():
        monkeypatch.setattr(batch, "step", step)
        raise RunError("no memory")

    async def serve():
        async with AsyncBatch(batch) as service:
            monkeypatch.setattr(batch, "step", failing)
            streams = [service.submit(prompt, Sampling(4)) for prompt in PROMPTS]
            ends = await asyncio.gather(*map(tokens, streams), return_exceptions=True)
            assert [str(end) for end in ends] == ["no memory"] * len(PROMPTS)
            return await tokens(service.submit(PROMPTS[0], Sampling(4)))

    assert asyncio.run(serve()) == greedy(PROMPTS[0], 4)


def test_closing_ends_what_is_under_way(batch):
    async def serve():
        async with AsyncBatch(batch) as service:
            stream = service.submit([1], Sampling(60))
            await anext(stream)
        with pytest.raises(RunError, match="the service was closed"):
            await tokens(stream)

    asyncio.run(serve())
    assert batch.running == ()


def test_a_fault_of_ours_is_not_kept_quiet(batch, monkeypatch):
    async def serve():
        async with AsyncBatch(batch) as service:
            monkeypatch.setattr(batch, "step", lambda: 1 / 0)
            with pytest.raises(RunError, match="closed"):
                await tokens(service.submit([1], Sampling(4)))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(serve())
