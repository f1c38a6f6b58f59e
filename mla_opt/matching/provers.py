"""Proving several attentions at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from mla_opt.graphs.protocol import Graph
from mla_opt.matching.certificate import Certificate, certify
from mla_opt.sites import LatentAttentionSite, LatentWeights

_MOST = 4
"""Proofs at a time: one of DeepSeek-V3 takes up to 300 MB."""


@dataclass(frozen=True, slots=True)
class Provers:
    """Threads that certify sites, where parts of the graph may be run in several threads.

    Attributes:
        count: how many there are; with none, a proof is made when it is asked for.
    """

    graph: Graph
    pool: Executor | None
    count: int

    def begin(self, site: LatentAttentionSite, weights: LatentWeights) -> Callable[[], Certificate]:
        """Begin a proof; what comes back waits for its certificate."""
        if self.pool is None:
            return partial(certify, self.graph, site, weights)
        return self.pool.submit(certify, self.graph, site, weights).result


@contextmanager
def provers_of(graph: Graph) -> Iterator[Provers]:
    """Provers of one graph; at the end, what has not begun is not proved any more."""
    if not graph.runs_in_threads:
        yield Provers(graph, None, 0)
        return
    count = min(_processors(), _MOST)
    pool = ThreadPoolExecutor(count)
    try:
        yield Provers(graph, pool, count)
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
