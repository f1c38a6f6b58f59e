"""A whole 4-bit model: tokens a second of the export, of what mla-opt makes of it, of llama.cpp and
of ik_llama.cpp on the same weights. Static caches; a step of one token, and a prompt's first token.

llama.cpp takes part if `llama_cpp` and `gguf` can be imported, ik_llama.cpp with DeepSeek's
architecture if `ik_llama_cpp` can be. They run the GGUF that `whole_gguf` writes beside the model.

Not everybody fits into memory at once. The original and the function bodies take turns first, then
the kernels and the others. Whether all compute the same is asked in front, on a short past.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mla_opt.benchmarking import runner, turns
from mla_opt.benchmarking.pair import Pair
from mla_opt.benchmarking.participants import KERNEL, ORIGINAL, Participant, variants
from mla_opt.benchmarking.peers.catalog import PEERS, Peer
from mla_opt.benchmarking.point_run import TURN_MS, Settings
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.process import WorkerError
from mla_opt.benchmarking.turns import Timing
from tests.benchmarks import models, whole_model
from tests.benchmarks.figures import Figure
from tests.benchmarks.sheet import Sheet, number

THREADS = 2
LLAMA, LLAMA_8 = "llama.cpp Q4_0, f16 cache", "llama.cpp Q4_0, q8_0 cache"
IK_LLAMA = "ik_llama.cpp Q4_0, f16 cache"
#: Who runs a GGUF that is there: the peer, and the type of its cache.
RUNNERS = {
    LLAMA: ("llama.cpp f16", "f16"),
    LLAMA_8: ("llama.cpp f16", "q8_0"),
    IK_LLAMA: ("ik_llama.cpp Q4_0", "f16"),
}
#: Where each looks for a file in the model's folder.
GGUF = {"llama.cpp": "model.gguf", "ik_llama.cpp": "model.ik.gguf"}
#: 4-bit products with activations in 8 bits, in two implementations.
TOLERANCE = 0.2
#: Where everybody's outputs are compared.
SHORT = Point(64, 1, 1)


@dataclasses.dataclass(frozen=True)
class Place:
    """Tokens in the cache, new tokens, and who takes part beside what mla-opt made.

    With `apart` the kernels and the others do not take turns: there is not the memory for all.
    """

    context: int
    query: int
    others: tuple[str, ...]
    apart: bool = False

    @property
    def point(self) -> Point:
        """As workers are asked for it."""
        return Point(self.context, 1, self.query)

    def __str__(self) -> str:
        new = f"a token on {self.context}" if self.query == 1 else f"a prompt of {self.query}"
        return f"{new} on {self.context}" if self.query > 1 and self.context else new


@dataclasses.dataclass(frozen=True)
class Whole:
    """What is run: a model of `whole_model`, types of caches, and where.

    `rounds` is how often everybody takes a turn, `seconds` after which time no other begins.
    `expanded`: llama.cpp caches expanded keys and values of this architecture.
    `targets`: what the fastest kernel is to be faster by, by who is compared with, tokens in the
    cache and new tokens.
    """

    model: str
    cache_types: tuple[str, ...]
    places: tuple[Place, ...]
    rounds: int
    seconds: float
    expanded: bool = True
    threads: int = THREADS
    targets: Mapping[tuple[str, int, int], float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Timed:
    """One participant at one place."""

    who: str
    place: Place
    timing: Timing

    @property
    def is_kernel(self) -> bool:
        """Whether it is what mla-opt made, with its kernel."""
        return self.who.endswith(KERNEL)

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready copy."""
        place = {"context": self.place.context, "query": self.place.query}
        return {"who": self.who, **place, **self.timing.to_dict()}


def build(chosen: Whole) -> Path:
    """The ONNX file, in a folder as a user has one."""
    key = models.key_of(chosen.model, Path(whole_model.__file__))

    def make(path: Path) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.whole_model", chosen.model]
        models.run([*command, str(path.parent)], chosen.model)

    return models.cached(models.cache_folder() / f"{chosen.model}-{key}", make)


def runners(chosen: Whole, model: Path) -> dict[str, Peer]:
    """Who is installed of llama.cpp's family, with the same weights."""
    known = {peer.name: peer for peer in PEERS}
    wanted = {name for place in chosen.places for name in place.others if name in RUNNERS}
    there = [name for name in RUNNERS if name in wanted and _is_there(known[RUNNERS[name][0]])]
    return {name: _with_weights(chosen, name, known[RUNNERS[name][0]], model) for name in there}


def _is_there(peer: Peer) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in peer.imports)


def _with_weights(chosen: Whole, name: str, peer: Peer, model: Path) -> Peer:
    """A peer that runs the very weights of the model, whose GGUF is written if it is not there."""
    runtime, cache = peer.arguments[0], RUNNERS[name][1]
    target = model.parent / GGUF[runtime]
    if not target.exists():
        command = [sys.executable, "-m", "tests.benchmarks.whole_gguf", str(model.parent)]
        models.run([*command, runtime, str(target)], "GGUF")
    cached = "expanded keys and values" if chosen.expanded else "latent rows"
    return dataclasses.replace(
        peer,
        name=name,
        arguments=(runtime, "q4_0", cache),
        inside=f"caches {cached} in {cache}; flash attention; weights in Q4_0",
        attention="expanded-cache" if chosen.expanded else peer.attention,
        tolerance=TOLERANCE,
        model=model.parent,
        threads=chosen.threads,
    )


@dataclasses.dataclass(frozen=True)
class Everybody:
    """The files that mla-opt made, by the type of their cache, and all who can be started."""

    original: Path
    optimized: Mapping[str, Path]
    started: Mapping[str, Participant]
    peers: Mapping[str, Peer]

    @classmethod
    def of(cls, chosen: Whole, say: Callable[[str], None]) -> Everybody:
        """Make, or find, all models."""
        original, optimized = build(chosen), {}
        started: dict[str, Participant] = {}
        for cache_type in chosen.cache_types:
            say(f"optimizing {original.parent.name}, {cache_type} cache")
            made = models.optimized(
                original, cache="static", cache_type=cache_type, matmul_nbits="kernel"
            )
            optimized[cache_type] = made
            (first, *ours), _ = variants(Pair.of(original, made), chosen.threads)
            started[ORIGINAL] = first
            started |= {f"{cache_type} cache, {one.name}": one for one in ours}
        peers = runners(chosen, original)
        return cls(original, optimized, {**started, **peers}, peers)

    def groups(self, place: Place) -> tuple[tuple[str, ...], ...]:
        """Who takes turns with whom: the original and the function bodies; everybody else.

        Bodies take part where the original does.
        """
        kernels = tuple(name for name in self.started if name.endswith(KERNEL))
        peers = tuple(name for name in place.others if name in self.peers)
        bodies = [name for name in self.started if name not in {*kernels, *self.peers}]
        first = tuple(bodies) if ORIGINAL in place.others else ()
        return (first, kernels, peers) if place.apart else (first, (*kernels, *peers))

    def errors(self, chosen: Whole) -> dict[str, float | None]:
        """How far logits are from the original's, on a short past; None where that is not known."""
        found: dict[str, float | None] = {}
        peers = tuple(self.peers.values())
        for cache_type, made in self.optimized.items():
            settings = Settings(self.original, made, (SHORT,), chosen.threads, 1, 0.0, quick=True)
            for one in runner.bench(settings, peers).measurements:
                is_ours = one.participant not in (ORIGINAL, *self.peers)
                name = f"{cache_type} cache, {one.participant}" if is_ours else one.participant
                if one.agreement.wrong:
                    raise models.BuildError(f"{name} computes something else: {one.agreement}")
                found[name] = one.agreement.error
            peers = ()
        return found


def measure(
    chosen: Whole, everybody: Everybody, skipped: list[str], say: Callable[[str], None]
) -> Iterator[Timed]:
    """Everybody at every place. Who cannot be started there is noted in `skipped`."""
    for place in chosen.places:
        say(f"measuring {place}")
        for group in everybody.groups(place):
            for one in _take_turns(chosen, everybody, place, group, skipped):
                say(f"{one.who}: {one.timing.best:.1f} ms at least, median {one.timing.median:.1f}")
                yield one


def _take_turns(
    chosen: Whole, everybody: Everybody, place: Place, names: Sequence[str], skipped: list[str]
) -> list[Timed]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers, loaded = {}, {}
        for number_, name in enumerate(names):
            own = Path(folder, str(number_))
            own.mkdir()
            try:
                with ExitStack() as attempt:
                    worker = attempt.enter_context(everybody.started[name].start(own))
                    given = dataclasses.asdict(place.point)
                    asked = {key: given[key] for key in ("context", "batch", "query")}
                    loaded[name] = float(worker.ask("setup", **asked)["loaded_mb"])
                    turns.warm_up(worker, worker.step())
                    stack.enter_context(attempt.pop_all())
                    workers[name] = worker
            except WorkerError as error:
                skipped.append(f"{name}, {place}: {error}")
        samples = turns.take_turns(workers, chosen.rounds, TURN_MS, chosen.seconds)
        beyond = {name: float(worker.ask("peak")["beyond_mb"]) for name, worker in workers.items()}
    return [
        Timed(name, place, Timing(tuple(samples[name]), loaded[name], beyond[name], None))
        for name in workers
    ]


def sheet(chosen: Whole, timed: Sequence[Timed], errors: Mapping[str, float | None]) -> Sheet:
    """Everybody at every place."""
    rows = tuple(
        (
            f"{one.who}, {one.place}",
            number(one.timing.best),
            number(one.timing.median),
            str(len(one.timing.samples_ms)),
            number(1e3 * one.place.query / one.timing.best),
            number(one.timing.loaded_mb),
            number(one.timing.beyond_mb),
            "" if errors.get(one.who) is None else f"{errors[one.who]:.0e}",
        )
        for one in timed
    )
    columns = ("who, and where", "min ms", "median ms", "samples", "tokens/s")
    columns += ("MB loaded", "MB beyond", "error")
    return Sheet(f"{chosen.model} ({chosen.threads} threads, batch 1)", columns, rows)


def figures(chosen: Whole, timed: Sequence[Timed]) -> list[Figure]:
    """The fastest kernel against the original and against the others, at every place."""
    found = []
    for one in timed:
        if one.who not in (ORIGINAL, *RUNNERS):
            continue
        kernels = [each for each in timed if each.place == one.place and each.is_kernel]
        if not kernels:
            continue
        ours = min(kernels, key=lambda each: each.timing.best)
        what = f"{chosen.model}, {one.place}: {ours.who}, against {one.who}"
        wanted = chosen.targets.get((one.who, one.place.context, one.place.query))
        ratios = one.timing.best / ours.timing.best, one.timing.median / ours.timing.median
        found.append(Figure(what, *ratios, target=wanted))
    return found
