"""`ProgramCache`: the states of a batch of sequences, as a program takes and returns them.

Shorter rows are padded on the left, as in `mla_opt.runtimes.onnxruntime.LatentCache`. States that a
program keeps in buffers are put into them before each call, and taken out behind it: several caches
of one program do not disturb each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import Bools, numpy_dtype
from mla_opt.graphs.torch.values import to_array, to_tensor, torch_dtype
from mla_opt.runtimes.feeds import TokenFeeds
from mla_opt.runtimes.prompts import Ints, Tokens, appended, padded
from mla_opt.runtimes.torch.program import LoadedProgram, Tensors

Array = npt.NDArray[Any]
NOTHING: Ints = np.zeros(0, np.int64)


class ProgramCache:
    """The states of B sequences, and the program that they are of.

    Attributes:
        decoder: the program.
        pending: for each sequence the tokens that are part of it but were not run yet.
    """

    def __init__(self, decoder: LoadedProgram, batch: int = 1) -> None:
        """Begin with no tokens.

        Raises:
            InputError: the program takes another batch.
        """
        fixed = decoder.interface.limits().batch
        if batch < 1 or fixed not in (None, batch):
            takes = "1 sequence or more" if fixed is None else f"{fixed} at once"
            raise InputError(f"{decoder.label}: takes {takes}, not {batch}")
        self.decoder = decoder
        self._feeds = TokenFeeds(decoder.interface, decoder.tokens, None)
        self._valid = np.zeros((batch, 0), np.bool_)
        self._states: Tensors = {}
        self._spoiled = ""
        self.pending: tuple[Ints, ...] = (NOTHING,) * batch

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return self._valid.shape[0]

    @property
    def lengths(self) -> Ints:
        """Tokens that each sequence holds, ``[B]``; neither padding nor pending ones count."""
        counts: Ints = self._valid.sum(axis=1)
        return counts

    @property
    def rows(self) -> int:
        """Rows in use, padding included."""
        return self._valid.shape[1]

    def spoil(self, reason: str) -> None:
        """Let nothing be appended any more, and say why."""
        self._spoiled = reason

    def reserve(self, rows: int) -> None:
        """Nothing: states grow, or are as large as the program made them."""

    def append(self, tokens: Tokens) -> Array:
        """Run new tokens of every sequence, the pending ones first, in one call.

        Returns logits of the last token of each sequence, ``[B, V]``.

        Raises:
            InputError: ids are out of range, the room does not suffice, or sequences differ in
                length and the program takes no mask.
            RunError: PyTorch failed.
        """
        self._check_sound()
        decoder = self.decoder
        ids, valid = padded(
            appended(decoder.label, tokens, self.pending, decoder.vocabulary, decoder.can_pad)
        )
        logits = self.run(ids, valid)
        self.pending = (NOTHING,) * self.batch
        return logits

    def run(self, ids: Ints, valid: Bools) -> Array:
        """Run ``ids`` ``[B, S]`` in one call: no check of them, nothing pending."""
        self._check_sound()
        seen = np.concatenate([self._valid, valid], axis=1)
        feeds = self._feeds(ids, seen, self.lengths)
        states = self._states or self._empty(ids.shape[1])
        outputs = self.decoder.run(states | {name: to_tensor(each) for name, each in feeds.items()})
        self._states = {
            each.input.name: outputs[each.output.name] for each in self.decoder.interface.states
        }
        self._valid = seen
        logits = to_array(outputs[self.decoder.logits.name])
        return logits[:, -1] if logits.ndim == 3 else logits[-self.batch :]

    def _empty(self, query_len: int) -> Tensors:
        """The states before the first token."""
        interface = self.decoder.interface
        shapes = interface.bind(self.batch, query_len, 0)
        return {
            each.input.name: torch.zeros(
                shapes[each.input.name], dtype=torch_dtype(numpy_dtype(each.input))
            )
            for each in interface.states
        }

    def _check_sound(self) -> None:
        if self._spoiled:
            raise InputError(f"{self.decoder.label}: {self._spoiled}")
