"""The file of one rank: heads and columns of its own, and a sum behind each product of rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tests.benchmarks import handmade
from tests.benchmarks.dims import Dims
from tests.benchmarks.handmade import Array, Tape

#: Real widths of heads and of the latent.
DIMS = Dims(2, 64, 12, 128, 64, 128, 512, 48, 32, 97)
COLUMNS = ("q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")


class RankTape(Tape):
    """Writes what rank ``rank`` of ``count`` has; sums are left out where ``sums`` is false."""

    def __init__(self, rank: int, count: int, sums: bool = True) -> None:
        super().__init__()
        self.rank, self.count, self.sums = rank, count, sums

    def weight(self, name: str, out: int, width: int) -> Array:
        axis = 0 if name.endswith(COLUMNS) else 1 if name.endswith(ROWS) else None
        if axis is None:
            return super().weight(name, out, width)
        sizes = [out, width]
        sizes[axis] *= self.count
        return np.split(super().weight(name, *sizes), self.count, axis)[self.rank]

    def linear(self, value: str, name: str, width: int, out: int) -> str:
        product = super().linear(value, name, width, out)
        if not (self.sums and name.endswith(ROWS)):
            return product
        return self.op("AllReduce", product, domain="com.microsoft")


def build(rank: int, count: int, path: Path, dims: Dims = DIMS, sums: bool = True) -> Path:
    own = dataclasses.replace(dims, num_heads=dims.num_heads // count, mlp=dims.mlp // count)
    handmade.build(own, "expanded", path, RankTape(rank, count, sums))
    return path


def whole(path: Path, dims: Dims = DIMS) -> Path:
    handmade.build(dims, "expanded", path)
    return path
