"""Seeded feeds: random, and valid as a real caller's would be.

A batch is padded on the left, each row by its own amount and the last row by none, because that is
where a wrong mask or a wrong position shows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import (
    Array,
    Bools,
    mask_feed,
    numpy_dtype,
    position_feed,
    positions,
    start_feed,
)
from mla_opt.graphs.interface.interface import ModelInterface, Port

#: Ids to draw from where no table was found that they index.
UNKNOWN_VOCABULARY = 16
#: Inputs that say how many tokens there are, by what ONNX Runtime's models call them, and how many
#: more than there are they say. Rows count their padding.
COUNTS = {"seqlens_k": -1, "past_seq_len": -1, "total_sequence_length": 0, "total_seq_len": 0}
#: Low ids tend to be special: padding, start, end.
FIRST_ORDINARY_TOKEN = 2


@dataclass(frozen=True, slots=True)
class Timeline:
    """All tokens of one scenario, past and new, from which calls are cut.

    Attributes:
        valid: ``[B, T]``, false where a row is padding.
        seed: what every random number follows from.
    """

    valid: Bools
    seed: int

    @classmethod
    def of(cls, batch: int, total_len: int, padding: Sequence[int], seed: int) -> Timeline:
        """Lay out ``total_len`` tokens with ``padding[b]`` of row ``b`` invalid, on the left."""
        before = np.asarray(padding, dtype=np.int64)[:, None]
        if before.shape[0] != batch:
            raise ValueError(f"{batch} rows but {before.shape[0]} paddings")
        return cls(np.arange(total_len)[None, :] >= before, seed)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return int(self.valid.shape[0])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """``[B, T]``: how many valid tokens come before, 0 for padding."""
        return positions(self.valid)

    def call(
        self, interface: ModelInterface, start: int, stop: int, capacity: int | None = None
    ) -> dict[str, Array]:
        """Return everything but the states for the call on tokens ``start`` to ``stop``."""
        shapes = interface.bind(self.batch, stop - start, start, capacity)
        feeds: dict[str, Array] = {}
        if interface.tokens is not None:
            feeds[interface.tokens.name] = self._tokens(interface, interface.tokens, start, stop)
        if interface.attention_mask is not None:
            mask = interface.attention_mask
            feeds[mask.name] = mask_feed(mask, shapes[mask.name], self.valid[:, :stop], start)
        for port in interface.positions:
            counted = self.positions[:, :stop]
            feeds[port.name] = position_feed(port, shapes[port.name], counted, start)
        for port in interface.starts:
            feeds[port.name] = start_feed(port, shapes[port.name], start)
        for port in interface.others:
            feeds[port.name] = self._other(port, shapes[port.name], start, stop)
        return feeds

    def _tokens(self, interface: ModelInterface, port: Port, start: int, stop: int) -> Array:
        if port is interface.embeddings:
            width = port.sizes[-1]
            if not isinstance(width, int):
                raise InputError(f"the last dimension of input {port.name!r} must be a number")
            noise = self._generator(port.name).standard_normal((*self.valid.shape, width))
            return noise[:, start:stop].astype(numpy_dtype(port))
        ids = self._ids(port.name, interface.vocabulary or UNKNOWN_VOCABULARY)
        ids = ids[:, start:stop].astype(numpy_dtype(port))
        return ids.reshape(-1) if port.rank == 1 else ids

    def _ids(self, name: str, vocabulary: int) -> Array:
        first = FIRST_ORDINARY_TOKEN if vocabulary > FIRST_ORDINARY_TOKEN else 0
        return self._generator(name).integers(first, vocabulary, self.valid.shape)

    def _other(self, port: Port, shape: tuple[int, ...], start: int, stop: int) -> Array:
        """True, 0 and 1 are what flags, counts and factors do least harm with.

        A further mask hides nothing. A float input as long as the query is data, not a factor:
        random.
        """
        dtype = numpy_dtype(port)
        if dtype.kind in "iu" and port.name in COUNTS:
            return np.full(shape, stop + COUNTS[port.name], dtype)
        if dtype.kind in "biu":
            flag = dtype.kind == "b" if port.hides is None else not port.hides
            return np.full(shape, flag, dtype)
        if port.axis_of("query_len") is None:
            return np.ones(shape, dtype)
        noise = self._generator(f"{port.name}@{start}").uniform(-1, 1, shape)
        return noise.astype(dtype)

    def _generator(self, name: str) -> np.random.Generator:
        """Return a generator of its own for each input, so that adding one changes no other."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def random_state(port: Port, shape: tuple[int, ...], seed: int) -> Array:
    """Return a made-up past of ``shape``; unit normal, like rows that come out of a norm."""
    generator = np.random.default_rng([seed, zlib.crc32(port.name.encode())])
    return generator.standard_normal(shape).astype(numpy_dtype(port))
