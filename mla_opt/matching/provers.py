"""Proving several attentions at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

from mla_opt.graphs.protocol import Graph
from mla_opt.matching.certificate import Certificate, certify
from mla_opt.sites import LatentAttentionSite, LatentWeights

_MOST = 4
"""Proofs at a time: one of DeepSeek-V3 takes up to 300 MB."""


class Provers:
    """Threads that certify sites, where parts of the graph may be run in several threads.

    Attributes:
        count: how many there are; with none, a proof is made when it is asked for.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.count = min(_processors(), _MOST) if graph.runs_in_threads else 0
        self._pool = ThreadPoolExecutor(self.count) if self.count else None

    def __enter__(self) -> Provers:
        """Nothing else: threads start with their first proof."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for what is being proved; what has not begun is not."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, site: LatentAttentionSite, weights: LatentWeights) -> Callable[[], Certificate]:
        """Begin a proof; what comes back waits for its certificate."""
        if self._pool is None:
            return partial(certify, self._graph, site, weights)
        return self._pool.submit(certify, self._graph, site, weights).result


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
