"""`LatentCache`: every state of one optimized model, and which of its rows hold tokens.

    cache = LatentCache.create(session, batch=4)
    logits = cache.append(prompts)          # [4, V], the logits of each row's last token
    cache.select([0, 0, 2, 1])              # beams
    cache.save("conversation.npz")

Rows of one batch may differ in length where the model takes a mask and positions for each row:
shorter ones are padded on the left of what is appended, so padding may lie between turns of a
conversation, and counts neither as a position nor as a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import Bools
from mla_opt.runtimes.feeds import TokenFeeds
from mla_opt.runtimes.onnxruntime.binding import Binding
from mla_opt.runtimes.onnxruntime.buffers import buffers
from mla_opt.runtimes.onnxruntime.cache_file import Content, read_cache, write_cache
from mla_opt.runtimes.onnxruntime.chunks import MEMORY_BUDGET, Chunk, check_chunk, next_chunk
from mla_opt.runtimes.onnxruntime.decoder import Decoder, decoder_of
from mla_opt.runtimes.onnxruntime.sessions import ModelLike, session
from mla_opt.runtimes.prompts import Ints, Tokens, as_rows, padded

Array = npt.NDArray[Any]

#: Rows that a cache of no stated capacity begins with.
FIRST_ROWS = 256
NOTHING: Ints = np.zeros(0, np.int64)


class LatentCache:
    """The caches of a batch of B sequences, and the model that fills them.

    Attributes:
        decoder: the model.
        pending: for each sequence the tokens that are part of it but were not run yet, such as the
            last one that was generated; they are run before what is appended next.
    """

    def __init__(self, decoder: Decoder, batch: int, capacity: int | None = None) -> None:
        """For `create`, which says what may go wrong."""
        check_size(decoder, batch, capacity)
        self.decoder = decoder
        self._may_grow = capacity is None and decoder.capacity is None
        rows = decoder.capacity or capacity or FIRST_ROWS
        self._states = buffers(decoder.interface.states, batch, rows)
        self._binding = Binding(decoder)
        self._feeds = TokenFeeds(decoder.interface, decoder.tokens, decoder.past_len_input)
        self._valid = np.zeros((batch, rows), np.bool_)
        self._counts = np.zeros(batch, np.int64)
        self._past = 0
        self._spoiled = ""
        self.pending: tuple[Ints, ...] = (NOTHING,) * batch

    @classmethod
    def create(
        cls,
        model: ModelLike | ort.InferenceSession,
        *,
        batch: int = 1,
        capacity: int | None = None,
    ) -> LatentCache:
        """Return empty caches for ``batch`` sequences of an optimized model.

        Args:
            model: a session, or a model to open one of.
            batch: B.
            capacity: rows that are reserved, and no more; caches grow as needed if not given,
                unless the model fixes the size of its buffers.

        Raises:
            InputError: the model was not optimized, is no decoder with a cache, or takes another
                batch or capacity.
        """
        decoder = open_decoder(model)
        if not decoder.description.optimized:
            raise InputError(
                f"{decoder.label}: is no optimized model; run `mla-opt optimize` on it first"
            )
        return cls(decoder, batch, capacity)

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self._valid.shape[0]

    @property
    def lengths(self) -> Ints:
        """Tokens that each sequence holds, ``[B]``; neither padding nor pending ones count."""
        return self._counts.copy()

    @property
    def rows(self) -> int:
        """Rows in use, padding included: the past that the model is told of."""
        return self._past

    @property
    def capacity(self) -> int:
        """Rows that are reserved."""
        return self._valid.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved for all caches."""
        return sum(state.nbytes for state in self._states)

    def append(
        self, tokens: Tokens, *, chunk: Chunk = "auto", memory_budget: int = MEMORY_BUDGET
    ) -> Array:
        """Run new tokens of every sequence, the pending ones first.

        Args:
            tokens: ids of one sequence or of each; they may differ in number, and some sequences
                may have none.
            chunk: tokens a call; ``auto`` takes the fastest that the budget allows.
            memory_budget: bytes that one call may take beyond model and caches.

        Returns:
            Logits of the last token of each sequence, ``[B, V]``, in the model's type. The next
            call may overwrite them. A row that got no token is meaningless.

        Raises:
            InputError: ids are out of range, the batch is another, the room does not suffice, or
                sequences differ in length and the model takes no mask.
            RunError: ONNX Runtime failed; tokens of the calls before that are in the cache.
        """
        check_chunk(chunk, memory_budget)
        rows = self._with_pending(as_rows(tokens, self.decoder.vocabulary))
        ids, valid = padded(rows)
        if not ids.size:
            raise InputError("there are no tokens to append; give at least one")
        self._check_even([row.size for row in rows], "are appended")
        self.reserve(self._past + ids.shape[1])
        self.pending = (NOTHING,) * self.batch
        return self._run_chunks(ids, valid, chunk, memory_budget)

    def run(self, ids: Ints, valid: Bools) -> Array:
        """Run ``ids`` ``[B, S]`` in one call, as they are: no check, no chunks, nothing pending.

        Where ``valid``, of the same shape, is false there is padding. Returns what `append` does.
        """
        start, stop = self._past, self._past + ids.shape[1]
        if stop > self.capacity:
            self.reserve(stop)
        self._valid[:, start:stop] = valid
        feeds = self._feeds(ids, self._valid[:, :stop], self._counts)
        logits = self._binding.run(feeds, self._states, start, ids.shape[1])
        self._counts += valid.sum(axis=1)
        self._past = stop
        return logits

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows in all; a cache that grows at least doubles.

        Raises:
            InputError: the capacity is fixed.
        """
        if rows <= self.capacity:
            return
        if not self._may_grow:
            raise InputError(
                f"{self.decoder.label}: {rows} rows do not fit in a cache of {self.capacity}, of"
                f" which {self._past} are used; make one of more capacity, or truncate it"
            )
        self._resize(max(rows, 2 * self.capacity))

    def select(self, indices: Sequence[int] | npt.NDArray[Any]) -> None:
        """Let sequence i be what sequence ``indices[i]`` was: reorders, repeats and drops.

        Raises:
            InputError: an index is out of range, or the model fixes another batch.
        """
        order = _indices(indices, self.batch)
        self._check_batch(order.size)
        for state in self._states:
            state.take(order, self._past)
        self._valid, self._counts = self._valid[order], self._counts[order]
        self.pending = tuple(self.pending[i] for i in order)

    def add(self, count: int = 1) -> None:
        """Add ``count`` empty sequences behind the others.

        Raises:
            InputError: others hold tokens and the model takes no mask, or it fixes the batch.
        """
        if count < 1:
            raise InputError(f"the number of sequences to add must be at least 1, not {count}")
        self._check_batch(self.batch + count)
        if self._past and not self.decoder.can_pad:
            raise InputError(f"{self.decoder.label}: {self._no_mask}, so no sequence can begin now")
        for state in self._states:
            state.pad(self.batch + count, self._past)
        self._valid = np.pad(self._valid, ((0, count), (0, 0)))
        self._counts = np.pad(self._counts, (0, count))
        self.pending = (*self.pending, *(NOTHING,) * count)

    def truncate(self, lengths: int | Sequence[int] | npt.NDArray[Any]) -> None:
        """Let each sequence keep its first tokens only, and nothing pending.

        Args:
            lengths: how many; one number for all, or one for each. Shorter sequences stay as
                they are.

        Raises:
            InputError: a number is negative, sequences would differ and the model takes no mask,
                or it has recurrent states, which forget nothing.
        """
        wanted = self._lengths(lengths)
        if any(state.kind == "recurrent" for state in self._states):
            raise InputError(f"{self.decoder.label}: has recurrent states, which forget nothing")
        counts = np.minimum(wanted, self._counts)
        self._check_even(counts.tolist(), "would be left")
        used = self._valid[:, : self._past]
        used &= np.cumsum(used, axis=1) <= counts[:, None]
        kept = np.flatnonzero(used.any(axis=0))
        rows = int(kept[-1]) + 1 if kept.size else 0
        for state in self._states:
            state.shorten(self._past, rows)
        self._past, self._counts = rows, counts
        self.pending = (NOTHING,) * self.batch

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write caches, lengths and pending tokens to one file, whole or not at all.

        Raises:
            InputError: the file exists and ``force`` is not given, or cannot be written.
        """
        self._check_sound()
        states = {state.state.input.name: state.rows(self._past) for state in self._states}
        content = Content(states, self._valid[:, : self._past], self.pending)
        write_cache(path, content, self.decoder.description.fingerprint, force)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        model: ModelLike | ort.InferenceSession,
        *,
        capacity: int | None = None,
    ) -> LatentCache:
        """Read what `save` wrote, for the same model.

        Raises:
            InputError: the file is damaged, is of another model, or does not fit.
        """
        decoder = open_decoder(model)
        content = read_cache(path, decoder)
        batch, rows = content.valid.shape
        cache = cls(decoder, batch, capacity)
        cache.reserve(rows)
        for state in cache._states:
            state.write(content.states[state.state.input.name])
        cache._valid[:, :rows] = content.valid
        cache._counts = content.valid.sum(axis=1)
        cache._past, cache.pending = rows, content.pending
        return cache

    def spoil(self, reason: str) -> None:
        """Let nothing be appended or saved any more, and say why."""
        self._spoiled = reason

    def _run_chunks(self, ids: Ints, valid: Bools, chunk: Chunk, budget: int) -> Array:
        done, total = 0, ids.shape[1]
        while True:
            size = next_chunk(self.decoder, chunk, self.batch, self._seen, total - done, budget)
            logits = self.run(ids[:, done : done + size], valid[:, done : done + size])
            done += size
            if done == total:
                return logits

    @property
    def _seen(self) -> int:
        """Keys that a call looks at besides its own: all rows of a buffer without the kernel."""
        attention = self.decoder.description.attention
        whole = self.decoder.description.driver.has_buffers and not (attention and attention.fused)
        return self.capacity if whole else self._past

    def _with_pending(self, rows: tuple[Ints, ...]) -> tuple[Ints, ...]:
        self._check_sound()
        if len(rows) != self.batch:
            raise InputError(
                f"the cache holds {self.batch} sequences, but tokens of {len(rows)} are given"
            )
        return tuple(np.concatenate(pair) for pair in zip(self.pending, rows))

    def _lengths(self, lengths: int | Sequence[int] | npt.NDArray[Any]) -> Ints:
        array = np.asarray(lengths)
        if array.dtype.kind not in "iu" or array.shape not in ((), (self.batch,)):
            raise InputError(f"lengths must be one number, or one for each of {self.batch}")
        if array.size and array.min() < 0:
            raise InputError(f"a length must be 0 or more, not {array.min()}")
        return np.broadcast_to(array, self.batch).astype(np.int64)

    def _resize(self, rows: int) -> None:
        for state in self._states:
            state.resize(rows, self._past)
        self._valid = np.pad(self._valid, ((0, 0), (0, rows - self.capacity)))

    def _check_sound(self) -> None:
        if self._spoiled:
            raise InputError(f"{self.decoder.label}: {self._spoiled}")

    def _check_even(self, sizes: Sequence[int], what: str) -> None:
        if len(set(sizes)) > 1 and not self.decoder.can_pad:
            counts = ", ".join(map(str, sizes))
            raise InputError(
                f"{self.decoder.label}: {counts} tokens {what}, but {self._no_mask}; run sequences"
                " of different lengths one by one"
            )

    @property
    def _no_mask(self) -> str:
        return "the model has no mask and positions that would tell padding from tokens"

    def _check_batch(self, batch: int) -> None:
        check_size(self.decoder, batch, None)


def open_decoder(model: ModelLike | ort.InferenceSession) -> Decoder:
    """Return the decoder of a session, or of a session opened on a model."""
    opened = model if isinstance(model, ort.InferenceSession) else session(model)
    return decoder_of(opened)


def check_size(decoder: Decoder, batch: int, capacity: int | None) -> None:
    """Raise `InputError` where a model does not take as many sequences or rows."""
    fixed = decoder.fixed_batch
    if batch < 1 or (fixed is not None and batch != fixed):
        takes = "1 sequence or more" if fixed is None else f"{fixed} at once"
        raise InputError(f"{decoder.label}: takes {takes}, not {batch}")
    if capacity is not None and capacity < 1:
        raise InputError(f"capacity must be at least 1 row, not {capacity}")
    if None not in (capacity, decoder.capacity) and capacity != decoder.capacity:
        raise InputError(
            f"{decoder.label}: has buffers of {decoder.capacity} rows, not {capacity}; optimize it"
            f" with cache='static:{capacity}', or with 'static' for any"
        )


def _indices(indices: Sequence[int] | npt.NDArray[Any], batch: int) -> Ints:
    order = np.asarray(indices)
    if order.ndim != 1 or not order.size or order.dtype.kind not in "iu":
        raise InputError("select takes a list of one sequence or more, by their numbers")
    wrong = order[(order < 0) | (order >= batch)]
    if wrong.size:
        raise InputError(f"there is no sequence {wrong[0]}; the cache holds 0 to {batch - 1}")
    return order.astype(np.int64)
