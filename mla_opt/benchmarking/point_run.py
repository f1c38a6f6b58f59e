"""Everybody at one point: start all processes, warm up, compare, take turns, end them.

Processes are started anew for every point: what one leaves in a runtime's memory pools would count
as memory of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mla_opt.benchmarking import turns
from mla_opt.benchmarking.agreement import (
    NOT_COMPARED,
    agreement,
    last_logits,
    logits_agreement,
)
from mla_opt.benchmarking.failures import as_bad_input
from mla_opt.benchmarking.pair import Pair
from mla_opt.benchmarking.participants import ORIGINAL, Participant, Variant
from mla_opt.benchmarking.peers.catalog import Peer
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.process import WorkerError, WorkerProcess
from mla_opt.benchmarking.report import Agreement, Compared, Measurement, MissingPeer
from mla_opt.benchmarking.turns import Timing

#: A turn repeats quick steps until this many milliseconds have gone: the first of them finds the
#: weights and the cache of others where its own were, and in generation a step follows a step.
TURN_MS = 300.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run.

    Attributes:
        rounds: turns of every participant at every point.
        seconds: no further round begins after this time at a point.
        quick: measure the machine's rates too briefly to be quoted.
    """

    original: Path
    optimized: Path
    points: tuple[Point, ...]
    threads: int
    rounds: int
    seconds: float
    quick: bool = False


@dataclass(slots=True)
class Found:
    """What has been found so far."""

    measurements: list[Measurement] = field(default_factory=list)
    missing: list[MissingPeer] = field(default_factory=list)


@dataclass(slots=True)
class PointRun:
    """Everybody at one point."""

    pair: Pair
    settings: Settings
    point: Point
    folder: Path
    found: Found

    def measure(self, ours: Sequence[Variant], peers: Sequence[Peer]) -> None:
        """Time everybody here."""
        with ExitStack() as stack:
            workers: dict[str, WorkerProcess] = {}
            loaded: dict[str, float] = {}
            for who in ours:
                with as_bad_input(self.point):
                    self._join(stack, who, workers, loaded)
            for peer in peers:
                self._try_peer(stack, peer, workers, loaded)
            agreements = self._agreements(ours, peers, workers)
            samples = self._take_turns(workers)
            for name, worker in workers.items():
                with as_bad_input(self.point):
                    peak = worker.ask("peak")["beyond_mb"]
                error = agreements[name].error
                timing = Timing(tuple(samples[name]), loaded[name], peak, error)
                self._keep(name, timing, samples[ORIGINAL], agreements[name])

    def _join(
        self,
        stack: ExitStack,
        who: Participant,
        workers: dict[str, WorkerProcess],
        loaded: dict[str, float],
    ) -> None:
        worker = stack.enter_context(who.start(self.folder))
        place = {"context": self.point.context, "batch": self.point.batch}
        setup = worker.ask("setup", **place, query=self.point.query)
        turns.warm_up(worker, worker.step())
        workers[who.name], loaded[who.name] = worker, float(setup["loaded_mb"])

    def _try_peer(
        self,
        stack: ExitStack,
        peer: Peer,
        workers: dict[str, WorkerProcess],
        loaded: dict[str, float],
    ) -> None:
        """A peer that fails is noted, and does not keep the others from being timed."""
        try:
            with ExitStack() as attempt:
                self._join(attempt, peer, workers, loaded)
                stack.enter_context(attempt.pop_all())
        except WorkerError as error:
            self._drop(peer, error)

    def _drop(self, peer: Peer, error: Exception) -> None:
        self.found.missing.append(MissingPeer(peer.name, f"{self.point}: {error}", ""))

    def _take_turns(self, workers: dict[str, WorkerProcess]) -> dict[str, list[float]]:
        with as_bad_input(self.point):
            return turns.take_turns(workers, self.settings.rounds, TURN_MS, self.settings.seconds)

    def _agreements(
        self,
        ours: Sequence[Variant],
        peers: Sequence[Peer],
        workers: dict[str, WorkerProcess],
    ) -> dict[str, Agreement]:
        """Compare everybody with the original."""
        shared = self.pair.shares_past(self.point)
        found = dict.fromkeys(workers, NOT_COMPARED)
        written = {who.name: self.folder / f"{who.name}.run" for who in ours}
        for who in ours:
            with as_bad_input(self.point):
                self._write_exact(who, workers[who.name], written[who.name], shared)
        for who in ours[1:]:
            how: Compared = "same past" if shared else "prompt"
            found[who.name] = agreement(self.pair, written[ORIGINAL], written[who.name], how)
        present = [peer for peer in peers if peer.name in workers]
        if present:
            found |= self._peer_agreements(present, workers)
        return found

    def _write_exact(self, who: Variant, worker: WorkerProcess, path: Path, shared: bool) -> None:
        """Write what is compared: without roundings of activations, in a process that ends here."""
        if not self.pair.rounds:
            self._write(worker, path, shared)
            return
        with who.start_twin(self.folder) as twin:
            place = {"context": self.point.context, "batch": self.point.batch}
            twin.ask("setup", **place, query=self.point.query)
            twin.step()
            self._write(twin, path, shared)

    def _write(self, worker: WorkerProcess, path: Path, shared: bool) -> None:
        if shared:
            worker.ask("agree", path=str(path))
        else:
            worker.ask("prompt", path=str(path), batch=self.point.batch)

    def _peer_agreements(
        self, peers: Sequence[Peer], workers: dict[str, WorkerProcess]
    ) -> dict[str, Agreement]:
        """Compare the logits of one prompt, whatever the point."""
        path = self.folder / "prompt.run"
        with as_bad_input(self.point):
            ids = workers[ORIGINAL].ask("prompt", path=str(path), batch=1)["ids"]
        reference = last_logits(path)
        if ids is None or reference is None:
            why = "the original takes no token ids or gives no logits"
            return {p.name: Agreement("not", None, None, problem=why) for p in peers}
        found: dict[str, Agreement] = {}
        for peer in peers:
            try:
                logits = peer.logits(workers[peer.name], ids, self.folder)
                found[peer.name] = logits_agreement(reference, logits, peer.tolerance)
            except WorkerError as error:
                found[peer.name] = Agreement("not", None, None, problem=str(error))
        return found

    def _keep(
        self, name: str, timing: Timing, original: Sequence[float], agreed: Agreement
    ) -> None:
        reference = Timing(tuple(original), 0.0, 0.0, None)
        self.found.measurements.append(
            Measurement(
                participant=name,
                context=self.point.context,
                batch=self.point.batch,
                query=self.point.query,
                min_ms=timing.best,
                median_ms=timing.median,
                samples_ms=timing.samples_ms,
                loaded_mb=timing.loaded_mb,
                beyond_mb=timing.beyond_mb,
                faster=reference.best / timing.best,
                faster_by_median=reference.median / timing.median,
                agreement=agreed,
            )
        )
