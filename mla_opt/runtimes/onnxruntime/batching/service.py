"""`AsyncBatch`: a continuous batch behind asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from mla_opt.errors import InputError, MlaOptError
from mla_opt.runtimes.generation import Sampling
from mla_opt.runtimes.onnxruntime.batching.batch import ContinuousBatch
from mla_opt.runtimes.onnxruntime.batching.sequence import BatchFullError, BatchToken
from mla_opt.runtimes.prompts import Tokens
from mla_opt.verification.running import RunError


class TokenStream:
    """The tokens of one request, as they come: ``async for token in stream``.

    It raises `RunError` where the sequence cannot go on.
    """

    def __init__(self, prompt: Tokens, sampling: Sampling) -> None:
        self.prompt, self.sampling = prompt, sampling
        self.sequence: int | None = None
        self.cancelled = False
        self._tokens: asyncio.Queue[BatchToken | RunError] = asyncio.Queue()
        self._ended = False

    def cancel(self) -> None:
        """Give the place back before the next step; for a stream that has ended, nothing."""
        self.cancelled = True

    def put(self, new: BatchToken | RunError) -> None:
        """For `AsyncBatch`: tell what has come."""
        self._tokens.put_nowait(new)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> BatchToken:
        if self._ended:
            raise StopAsyncIteration
        new = await self._tokens.get()
        if isinstance(new, BatchToken):
            self._ended = new.finish_reason is not None
            if new.finish_reason != "error":
                return new
            new = RunError(new.error)
        self._ended = True
        raise new


class AsyncBatch:
    """Requests for a `ContinuousBatch`, which is stepped in a thread while there are any.

        async with AsyncBatch(batch) as service:
            async for new in service.submit(prompt, Sampling(max_new_tokens=100)):
                ...

    Everything but the steps happens in the event loop that entered it.
    """

    def __init__(self, batch: ContinuousBatch, *, waiting: int = 256) -> None:
        """``waiting``: most requests that wait for a place at a time.

        Raises:
            InputError: that is less than one.
        """
        if waiting < 1:
            raise InputError(f"waiting must be at least 1 request, not {waiting}")
        self._batch, self._most = batch, waiting
        self._waiting: deque[TokenStream] = deque()
        self._streams: dict[int, TokenStream] = {}
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncBatch:
        self._worker = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Let what is under way end with an error, after the step that runs."""
        worker, self._worker = self._worker, None
        self._wake.set()
        if worker is not None:
            await worker

    def submit(self, prompt: Tokens, sampling: Sampling) -> TokenStream:
        """Ask for a sequence; it begins when there is a place.

        Raises:
            InputError: as `ContinuousBatch.add`.
            BatchFullError: as many requests wait as may.
            RuntimeError: the service was not entered, or has ended.
        """
        if self._worker is None or self._worker.done():
            raise RuntimeError("the service is not running; use it in `async with`")
        self._batch.check(prompt, sampling)
        if self._alive() >= self._most:
            raise BatchFullError(f"{self._most} requests are waiting already; try again later")
        stream = TokenStream(prompt, sampling)
        self._waiting.append(stream)
        self._wake.set()
        return stream

    def _alive(self) -> int:
        """Those that wait and have not been given up."""
        self._waiting = deque(each for each in self._waiting if not each.cancelled)
        return len(self._waiting)

    async def _serve(self) -> None:
        try:
            while self._worker is not None:
                self._wake.clear()
                self._let_go()
                self._let_in()
                await (self._step() if self._streams else self._wake.wait())
        finally:
            self._end_all(RunError("the service was closed"))

    async def _step(self) -> None:
        try:
            said = await asyncio.to_thread(self._batch.step)
        except MlaOptError as error:
            self._end_all(RunError(str(error)))
        else:
            self._tell(said)

    def _let_go(self) -> None:
        for number in [n for n, stream in self._streams.items() if stream.cancelled]:
            del self._streams[number]
            self._batch.drop(number)

    def _let_in(self) -> None:
        while self._waiting and self._batch.free:
            stream = self._waiting.popleft()
            if not stream.cancelled:
                stream.sequence = self._batch.add(stream.prompt, stream.sampling)
                self._streams[stream.sequence] = stream

    def _tell(self, said: tuple[BatchToken, ...]) -> None:
        for new in said:
            stream = self._streams[new.sequence]
            stream.put(new)
            if new.finish_reason is not None:
                del self._streams[new.sequence]

    def _end_all(self, error: RunError) -> None:
        """Nobody waits for ever: every request ends, and every place is free."""
        for number in self._batch.running:
            self._batch.drop(number)
        for stream in (*self._streams.values(), *self._waiting):
            stream.put(error)
        self._streams.clear()
        self._waiting.clear()
