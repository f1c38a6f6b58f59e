"""A small server: sequences with blocks of their own, and calls that bring tokens of some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[ir.Model, Arrays], Arrays]

SIZE, BLOCKS = 16, 12
#: Blocks are handed out in this order, so that none of a sequence follow each other.
ORDER = (7, 2, 11, 0, 5, 9, 4, 1, 8, 3, 10, 6)


@dataclass
class Server:
    """Keeps the blocks of a model, and says which belong to which sequence.

    Attributes:
        run: runs the model on feeds.
        scales: what is fed for scales of codes.
    """

    model: ir.Model
    run: Run
    scales: Arrays = field(default_factory=dict)
    caches: Arrays = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=lambda: list(ORDER))

    def __post_init__(self) -> None:
        for value in self.model.graph.inputs:
            if value.shape is not None and "block_size" in str(value.shape):
                shape = (BLOCKS, SIZE, 1, int(value.shape[3]))
                self.caches[str(value.name)] = np.full(shape, 3).astype(value.dtype.numpy())

    def call(self, tokens: Mapping[str, Arrays], skip: tuple[str, ...] = ()) -> Arrays:
        """Bring tokens of some sequences: by sequence the inputs ``[1, S, ...]`` of each.

        The rows of sequences to ``skip`` are there already. Returns outputs by sequence.
        """
        counts = {name: next(iter(given.values())).shape[1] for name, given in tokens.items()}
        feeds: Arrays = {**self.caches, **self.scales}
        for name in next(iter(tokens.values())):
            feeds[name] = np.concatenate([given[name] for given in tokens.values()], axis=1)
        feeds |= self._of_call(counts, skip)
        made = self.run(self.model, feeds)
        for cache in self.caches:
            self.caches[cache] = made[cache.replace("past", "present")]
        for name, count in counts.items():
            self.lengths[name] = self.lengths.get(name, 0) + count
        ends = np.cumsum(list(counts.values()))
        (output,) = (value for key, value in made.items() if not key.startswith("present"))
        return dict(zip(counts, np.split(output, ends[:-1], axis=1)))

    def _of_call(self, counts: Mapping[str, int], skip: tuple[str, ...]) -> Arrays:
        past = [self.lengths.get(name, 0) for name in counts]
        for name, before, count in zip(counts, past, counts.values()):
            mine = self.blocks.setdefault(name, [])
            while len(mine) * SIZE < before + count:
                mine.append(self.free.pop(0))
        most = max(len(self.blocks[name]) for name in counts)
        table = [self.blocks[name] + [-1] * (most - len(self.blocks[name])) for name in counts]
        slots = [
            -1 if name in skip else self.blocks[name][place // SIZE] * SIZE + place % SIZE
            for name, before, count in zip(counts, past, counts.values())
            for place in range(before, before + count)
        ]
        ends = [0, *np.cumsum(list(counts.values()))]
        given = {
            "cumulative_sequence_length": ends,
            "past_seqlens": past,
            "block_table": table,
            "slot_mapping": slots,
        }
        return {name: np.asarray(value, np.int32) for name, value in given.items()}
