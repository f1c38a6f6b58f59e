"""`ContinuousBatch`: sequences that come and go, in one call a step."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.runtimes.feeds import TokenFeeds
from mla_opt.runtimes.generation import Sampling
from mla_opt.runtimes.onnxruntime.batching.sequence import BatchFullError, BatchToken, Sequence
from mla_opt.runtimes.onnxruntime.batching.slots import Slots
from mla_opt.runtimes.onnxruntime.batching.suited import check_by_trial, check_structure
from mla_opt.runtimes.onnxruntime.binding import Binding
from mla_opt.runtimes.onnxruntime.cache import check_size, open_decoder
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.runtimes.onnxruntime.sessions import ModelLike
from mla_opt.runtimes.prompts import Ints, Tokens, as_rows
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]

#: Rows for each sequence, where neither the caller nor the model says how many.
DEFAULT_ROWS = 2048
#: Prompt tokens that a step runs beside its new tokens: the longest that others wait for.
PROMPT_TOKENS = 512


class ContinuousBatch:
    """Up to ``sequences`` sequences that share a model, each with latent rows of its own.

    The first slots hold the sequences that decode, one behind the other; the next one holds the
    sequence whose prompt is being run. When a sequence ends, the last one moves to its slot.

    It is for one thread at a time.
    """

    def __init__(self, decoder: Decoder, sequences: int, rows: int, prompt_tokens: int) -> None:
        """For `create`, which says what may go wrong."""
        self.decoder, self._prompt_tokens = decoder, prompt_tokens
        self._slots = Slots(decoder.interface.states, sequences, rows)
        self._binding = Binding(decoder)
        self._feeds = TokenFeeds(decoder.interface, decoder.tokens, decoder.past_len_input)
        self._ready: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._next = 0

    @classmethod
    def create(
        cls,
        model: ModelLike | ort.InferenceSession,
        *,
        sequences: int = 8,
        rows: int | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> ContinuousBatch:
        """Reserve the caches, and try whether the model suits: three short calls and a long one.

        Args:
            model: a model optimized with ``cache="static"``, or a session of one.
            sequences: most that are held at a time.
            rows: most tokens of each, prompt included; 2048, or what the model fixes, if not given.
            prompt_tokens: of prompts, most that one step runs; longer prompts take several steps,
                so that the others go on meanwhile.

        Raises:
            InputError: an argument has no meaning, or sequences of different lengths cannot share
                a call of this model.
            RunError: ONNX Runtime does not run it with as many rows.
        """
        decoder = open_decoder(model)
        check_structure(decoder)
        check_size(decoder, sequences, rows)
        if prompt_tokens < 1:
            raise InputError(f"prompt_tokens must be at least 1, not {prompt_tokens}")
        rows = rows or decoder.capacity or DEFAULT_ROWS
        batch = cls(decoder, sequences, rows, prompt_tokens)
        check_by_trial(decoder, batch._slots, batch._step)
        return batch

    @property
    def sequences(self) -> int:
        """Most sequences that are held at a time."""
        return self._slots.count

    @property
    def rows(self) -> int:
        """Most tokens of a sequence."""
        return self._slots.rows

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved for all caches."""
        return self._slots.nbytes

    @property
    def running(self) -> tuple[int, ...]:
        """The numbers of all sequences that have not ended."""
        return tuple(each.number for each in (*self._ready, *self._waiting))

    @property
    def free(self) -> int:
        """How many sequences can be added now."""
        return self.sequences - len(self._ready) - len(self._waiting)

    @property
    def lengths(self) -> dict[int, int]:
        """Rows of each sequence that has not ended: its past at the next step."""
        return {each.number: each.length for each in (*self._ready, *self._waiting)}

    def check(self, prompt: Tokens, sampling: Sampling) -> None:
        """Raise the `InputError` that `add` would raise on a batch that is not full."""
        self._sequence(prompt, sampling)

    def add(self, prompt: Tokens, sampling: Sampling) -> int:
        """Add a sequence; its prompt is run by the next steps. Returns its number.

        Raises:
            BatchFullError: there are as many sequences as there is room for.
            InputError: ids are out of range, there are none, an argument has no meaning, or prompt
                and new tokens take more rows than there are.
        """
        sequence = self._sequence(prompt, sampling)
        if not self.free:
            raise BatchFullError(
                f"{self.decoder.label}: all {self.sequences} sequences are taken; wait until one"
                " has ended, drop one, or create the batch with more"
            )
        self._waiting.append(sequence)
        self._next += 1
        return sequence.number

    def drop(self, sequence: int) -> None:
        """Let a sequence end now; nothing more is told of it.

        Raises:
            InputError: there is no such sequence, or it has ended.
        """
        for each in (*self._ready, *self._waiting):
            if each.number == sequence:
                self._remove([each])
                return
        raise InputError(f"no sequence {sequence} is running; it has ended, or was never added")

    def step(self) -> tuple[BatchToken, ...]:
        """Run one new token of each sequence that decodes, then prompts of those that wait.

        Returns the new tokens, none for a sequence whose prompt is not through. Sequences that
        have ended are not running any more.

        Raises:
            RunError: ONNX Runtime failed. Nothing has changed; the step can be tried again.
        """
        return (*self._decode(), *self._run_prompts())

    def _decode(self) -> list[BatchToken]:
        if not self._ready:
            return []
        ready = list(self._ready)
        last = np.array([each.last for each in ready], np.int64)
        logits = self._step(last, np.array([each.length for each in ready], np.int64))
        for each in ready:
            each.length += 1
        said = [self._take(each, row) for each, row in zip(ready, logits)]
        self._remove([each for each, new in zip(ready, said) if new.finish_reason is not None])
        return said

    def _run_prompts(self) -> list[BatchToken]:
        """Run prompts, the oldest first, as many tokens as a step may."""
        said, budget = [], self._prompt_tokens
        while self._waiting and budget:
            first = self._waiting[0]
            count = min(first.left, budget)
            budget -= count
            try:
                logits = self._run_chunk(first, count)
            except RunError as error:
                # It concerns this sequence alone; what others have said must not be lost.
                said.append(BatchToken(first.number, -1, "error", str(error)))
                self._remove([first])
                continue
            if not first.left:
                said.append(self._take(first, logits[0]))
                self._ready.append(self._waiting.popleft())
                if said[-1].finish_reason is not None:
                    self._remove([first])
        return said

    def _run_chunk(self, sequence: Sequence, count: int) -> Array:
        start, stop = sequence.length, sequence.length + count
        sequence.length = stop  # even if the call fails: what it has written is cleared then
        ids = sequence.prompt[None, start:stop]
        feeds = self._feeds(ids, np.ones((1, stop), np.bool_), np.array([start], np.int64))
        slot = self._slots.view(len(self._ready), 1)
        return self._binding.run(feeds, slot, start, count)

    def _step(self, tokens: Ints, lengths: Ints) -> Array:
        """Run one token of the sequences in the first slots, of so many rows."""
        feeds = self._feeds.step(tokens[:, None], lengths)
        return self._binding.run(feeds, self._slots.view(0, tokens.size), int(lengths.max()), 1)

    def _take(self, sequence: Sequence, logits: Array) -> BatchToken:
        """Choose the next token; one sequence without numbers does not stop the others."""
        try:
            (token,) = sequence.sampler(logits[None])
        except RunError as error:
            return BatchToken(sequence.number, -1, "error", str(error))
        return sequence.take(int(token))

    def _remove(self, ended: list[Sequence]) -> None:
        """Close the gaps: the last sequences move into the slots of those that have ended."""
        before = len(self._ready)
        for each in ended:
            if each in self._waiting:
                self._slots.clear(before, 0, each.length)
                self._waiting.remove(each)
                continue
            slot, last = self._ready.index(each), len(self._ready) - 1
            self._slots.clear(slot, 0, each.length)
            if slot != last:
                self._slots.move(last, slot, self._ready[last].length)
                self._ready[slot] = self._ready[last]
            self._ready.pop()
        if self._waiting and self._waiting[0].length and before != len(self._ready):
            self._slots.move(before, len(self._ready), self._waiting[0].length)

    def _sequence(self, prompt: Tokens, sampling: Sampling) -> Sequence:
        rows = as_rows(prompt, self.decoder.vocabulary)
        if len(rows) != 1 or not rows[0].size:
            raise InputError("a prompt is one sequence of one token or more; add others one by one")
        sampler, stops = sampling.sampler(), sampling.stops(self.decoder.vocabulary)
        needed = rows[0].size + sampling.max_new_tokens - 1
        if needed > self.rows:
            raise InputError(
                f"{self.decoder.label}: a prompt of {rows[0].size} tokens and"
                f" {sampling.max_new_tokens} new ones take {needed} rows, and there are {self.rows}"
                " for each sequence; ask for fewer, or create the batch with more rows"
            )
        limit = sampling.max_new_tokens
        return Sequence(self._next, rows[0], limit, frozenset(stops.tolist()), sampler)
