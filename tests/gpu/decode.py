"""One decode step at some size, timed: buffers in place, random rows, caches that are cold."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from mla_opt.kernels.cuda_library import CudaLibrary, CudaProblem, ElementType, cuda_problem
from tests.gpu.driver import Device, Memory

RANK, ROPE = 512, 64
WIDTH = RANK + ROPE
# Rows of random numbers that a cache repeats.
PATTERN_ROWS = 1 << 15


@dataclass(frozen=True)
class Point:
    """Sizes of a step: H heads, T keys, B sequences."""

    heads: int
    keys: int
    batch: int

    @property
    def cache_bytes(self) -> int:
        return 2 * WIDTH * self.keys * self.batch

    @property
    def bytes(self) -> int:
        """Every row read once, queries and outputs."""
        return self.cache_bytes + 2 * self.batch * self.heads * (WIDTH + RANK)

    @property
    def operations(self) -> int:
        return 2 * self.batch * self.heads * self.keys * (WIDTH + RANK)


@dataclass(frozen=True)
class Timing:
    """Seconds of a step: the least and the median of the turns."""

    least: float
    median: float


class Step:
    """The step of a point, on as many caches as it takes to outgrow the L2 cache."""

    def __init__(self, device: Device, library: CudaLibrary, point: Point, copies: int) -> None:
        self._device, self._library, self._point = device, library, point
        self._count = device.multiprocessors
        batch, heads = point.batch, point.heads
        random = np.random.default_rng(0)
        self._pattern = device.upload(
            _random(random, (min(PATTERN_ROWS, point.keys * batch), WIDTH))
        )
        self._query = device.upload(_random(random, (batch, heads, 1, WIDTH)))
        self._latent = device.upload(_random(random, (batch, 1, 1, WIDTH)))
        self._past = device.upload(np.full(batch, point.keys - 1, np.int32))
        self._output = device.allocate(2 * batch * heads * RANK)
        self._caches = [self._cache() for _ in range(copies)]
        self._problems = [self._problem(cache) for cache in self._caches]
        self._size = library.workspace_bytes(self._problems[0], self._count)
        self._workspace = device.allocate(self._size)

    def _cache(self) -> Memory:
        size = self._point.cache_bytes
        cache = self._device.allocate(size)
        for start in range(0, size, self._pattern.size):
            length = min(self._pattern.size, size - start)
            self._device.copy(cache.address + start, self._pattern.address, length)
        return cache

    def _problem(self, cache: Memory) -> CudaProblem:
        return cuda_problem(
            element_type=ElementType.BFLOAT16,
            batch=self._point.batch,
            heads=self._point.heads,
            query_len=1,
            new_len=1,
            cache_len=self._point.keys,
            kv_lora_rank=RANK,
            rope_dim=ROPE,
            scale=192**-0.5,
            causal=True,
            query=self._query.address,
            latent=self._latent.address,
            cache=cache.address,
            past_len=self._past.address,
            output=self._output.address,
            new_cache=cache.address,
        )

    def start(self, stream: int) -> None:
        """One step on each cache."""
        for problem in self._problems:
            self._library.launch(problem, self._count, self._workspace.address, self._size, stream)

    @property
    def in_bulk(self) -> bool:
        """Whether keys come by the tensor memory accelerator."""
        return self._library.loads_in_bulk(self._problems[0])

    def time(self, turns: int) -> Timing:
        """Seconds of one step, from turns of a captured graph of all."""
        device, stream = self._device, self._device.stream()
        self.start(stream)
        device.synchronize()
        with device.captured(stream) as graph:
            self.start(stream)
        graph.launch(stream)
        device.synchronize()
        each = [
            device.seconds(lambda: graph.launch(stream), stream) / len(self._problems)
            for _ in range(turns)
        ]
        return Timing(min(each), statistics.median(each))


def _random(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bits of bfloat16 numbers."""
    bits = random.standard_normal(shape, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def copies_for(device: Device, point: Point) -> int:
    """Caches that together are four times the L2 cache: 4 to 64, or one of the largest."""
    wanted = -(-4 * device.l2_bytes // point.cache_bytes)
    room = int(0.8 * device.free_bytes()) // point.cache_bytes
    return max(0, min(max(wanted, 1 if point.cache_bytes > 1 << 30 else 4), 64, room))
