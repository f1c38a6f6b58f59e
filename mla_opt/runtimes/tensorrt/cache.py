"""`EngineCache`: the latent caches of a batch of sequences, on the device, and how to fill them.

The first tokens of all sequences go through the prefill engine, everything later through the decode
engine. Shorter rows are padded on the left, as in `mla_opt.runtimes.onnxruntime.LatentCache`.

A decode step of one token is fed a mask over all rows of the buffer: its shapes are then the same
at every step, and it is recorded once as a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import Bools
from mla_opt.runtimes.feeds import TokenFeeds
from mla_opt.runtimes.prompts import Ints, Tokens, appended, padded
from mla_opt.runtimes.tensorrt.execution import PhaseRun, dtype_of
from mla_opt.runtimes.tensorrt.loading import EngineDecoder, Engines

Array = npt.NDArray[Any]
NOTHING: Ints = np.zeros(0, np.int64)


class EngineCache:
    """Buffers of B sequences, and the engines that write them.

    Attributes:
        engines: what it runs.
        pending: for each sequence the tokens that are part of it but were not run yet.
    """

    def __init__(self, engines: Engines, batch: int = 1) -> None:
        """Allocate and clear the buffers.

        Raises:
            InputError: the engines take another batch.
            RunError: the device has no room.
        """
        self.engines = engines
        self._check_batch(batch)
        manifest, decoder = engines.manifest, engines.decoder
        self._feeds = TokenFeeds(decoder.interface, decoder.tokens, decoder.past_len)
        self._valid = np.zeros((batch, manifest.rows), np.bool_)
        self._counts = np.zeros(batch, np.int64)
        self._past, self._spoiled = 0, ""
        self._addresses = self._allocated(batch)
        self._runs = {
            each.phase: PhaseRun(
                engines.cuda,
                engines.opened[each.phase],
                each,
                manifest.caches,
                self._logits(),
            )
            for each in manifest.phases
        }
        for run in self._runs.values():
            run.bind(self._addresses)
        self.pending: tuple[Ints, ...] = (NOTHING,) * batch

    def _allocated(self, batch: int) -> dict[str, int]:
        """Zeros, because what is not valid must be finite."""
        addresses: dict[str, int] = {}
        for cache in self.engines.manifest.caches:
            size = math.prod((batch, cache.rows, cache.width)) * dtype_of(cache.dtype).itemsize
            addresses[cache.input] = self.engines.cuda.allocate(size)
            self.engines.cuda.zero(addresses[cache.input], size)
        return addresses

    def _logits(self) -> str:
        kept = {each.output for each in self.engines.manifest.caches}
        outputs = self.engines.manifest.phase("decode").outputs
        names = [each.name for each in outputs if each.name not in kept]
        if len(names) != 1:
            raise InputError(
                f"{self.decoder.label}: which output holds the logits cannot be told; it has"
                f" {', '.join(names) or 'none'}"
            )
        return names[0]

    @property
    def decoder(self) -> EngineDecoder:
        """What the engines take."""
        return self.engines.decoder

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
        """Rows in use, padding included."""
        return self._past

    @property
    def capacity(self) -> int:
        """Rows that there are."""
        return self._valid.shape[1]

    def close(self) -> None:
        """Give all memory on the device back; nothing can be appended any more."""
        for run in self._runs.values():
            run.close()
        for address in self._addresses.values():
            self.engines.cuda.free(address)
        self._addresses = {}
        self.spoil("its memory was given back")

    def spoil(self, reason: str) -> None:
        """Let nothing be appended any more, and say why."""
        self._spoiled = reason

    def reserve(self, rows: int) -> None:
        """Check that there is room for as many rows in all. Raises `InputError`."""
        if rows > self.capacity:
            raise InputError(
                f"{self.decoder.label}: {rows} rows do not fit in caches of {self.capacity}, of"
                f" which {self._past} are used; export it with more --rows"
            )

    def append(self, tokens: Tokens) -> Array:
        """Run new tokens of every sequence, the pending ones first.

        Returns logits of the last token of each sequence, ``[B, V]``.

        Raises:
            InputError: ids are out of range, the room does not suffice, or sequences differ in
                length and the model takes no mask.
            RunError: TensorRT failed.
        """
        decoder = self.decoder
        ids, valid = padded(
            appended(decoder.label, tokens, self.pending, decoder.vocabulary, decoder.can_pad)
        )
        self.reserve(self._past + ids.shape[1])
        self.pending = (NOTHING,) * self.batch
        done = 0
        while True:
            size = min(self._most_tokens(), ids.shape[1] - done)
            logits = self.run(ids[:, done : done + size], valid[:, done : done + size])
            done += size
            if done == ids.shape[1]:
                return logits

    def run(self, ids: Ints, valid: Bools) -> Array:
        """Run ``ids`` ``[B, S]`` in one call: no check of them, nothing pending."""
        if self._spoiled:
            raise InputError(f"{self.decoder.label}: {self._spoiled}")
        start, stop = self._past, self._past + ids.shape[1]
        self.reserve(stop)
        self._valid[:, start:stop] = valid
        feeds = self._feeds(ids, self._valid[:, :stop], self._counts)
        step = start > 0 and ids.shape[1] == 1 and self._fix_shapes(feeds)
        logits = self._runs["decode" if start else "prefill"].run(feeds, self.batch, record=step)
        self._counts += valid.sum(axis=1)
        self._past = stop
        return logits[:, -1] if logits.ndim == 3 else logits

    def _fix_shapes(self, feeds: dict[str, Array]) -> bool:
        """Give a step a mask over all rows; returns whether its shapes are now always the same.

        What the model takes for the past is then too long, but serves only to forbid the future,
        of which one token has none; positions are fed.
        """
        mask = self.decoder.interface.attention_mask
        if mask is None or not self.decoder.can_pad or feeds[mask.name].ndim != 2:
            return False
        given = feeds[mask.name]
        wide = np.full((given.shape[0], self.capacity), bool(mask.hides), given.dtype)
        wide[:, : given.shape[1]] = given
        feeds[mask.name] = wide
        return True

    def _most_tokens(self) -> int:
        return self.engines.most("decode" if self._past else "prefill")[1]

    def _check_batch(self, batch: int) -> None:
        most = min(self.engines.most(each.phase)[0] for each in self.engines.manifest.phases)
        if not 1 <= batch <= most:
            raise InputError(
                f"{self.engines.folder}: takes 1 to {most} sequences, not {batch}; export it with"
                " another --batch"
            )
