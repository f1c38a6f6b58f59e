"""A whole 4-bit model: tokens a second of the export, of what mla-opt makes of it, of llama.cpp and
of ik_llama.cpp on the same weights. Static caches; a step of one token, and a prompt's first token.

llama.cpp takes part if `llama_cpp` and `gguf` can be imported, ik_llama.cpp with DeepSeek's
architecture if `ik_llama_cpp` can be. They run the GGUF that `whole_gguf` writes beside the model,
with a 16-bit cache, their default.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mla_opt.benchmarking import runner
from mla_opt.benchmarking.peers.catalog import PEERS, Peer
from mla_opt.benchmarking.point_run import Settings
from mla_opt.benchmarking.points import Point
from mla_opt.benchmarking.report import BenchReport, Measurement
from tests.benchmarks import models, whole_model
from tests.benchmarks.figures import Figure
from tests.benchmarks.sheet import Sheet, number

THREADS = 2
LLAMA, IK_LLAMA = "llama.cpp Q4_0, f16 cache", "ik_llama.cpp Q4_0, f16 cache"
#: Who runs a GGUF that is there: peers by the names that they have here.
RUNNERS = {LLAMA: "llama.cpp f16", IK_LLAMA: "ik_llama.cpp Q4_0"}
#: Where each looks for a file in the model's folder.
GGUF = {"llama.cpp": "model.gguf", "ik_llama.cpp": "model.ik.gguf"}
#: 4-bit products with activations in 8 bits, in two implementations.
TOLERANCE = 0.2


@dataclasses.dataclass(frozen=True)
class Whole:
    """What is run: a model of `whole_model`, cache types, tokens in the cache, and a prompt.

    `rounds` is how often everybody takes a turn, `seconds` after which time no other begins.
    `expanded`: llama.cpp caches expanded keys and values of this architecture, and ik_llama.cpp has
    it not. `targets`: what a step is to be faster by, by who is compared with and tokens in the
    cache.
    """

    model: str
    cache_types: tuple[str, ...]
    contexts: tuple[int, ...]
    prompt: int
    rounds: int
    seconds: float
    expanded: bool = True
    targets: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    @property
    def points(self) -> tuple[Point, ...]:
        """Steps, then the prompt."""
        return (*(Point(context, 1, 1) for context in self.contexts), Point(0, 1, self.prompt))


def build(chosen: Whole) -> Path:
    """The ONNX file, in a folder as a user has one."""
    key = models.key_of(chosen.model, Path(whole_model.__file__))

    def make(path: Path) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.whole_model", chosen.model]
        models.run([*command, str(path.parent)], chosen.model)

    return models.cached(models.cache_folder() / f"{chosen.model}-{key}", make)


def runners(chosen: Whole, model: Path) -> tuple[Peer, ...]:
    """Who is installed of llama.cpp's family, with the same weights."""
    known = {peer.name: peer for peer in PEERS}
    names = (LLAMA,) if chosen.expanded else (LLAMA, IK_LLAMA)
    there = [name for name in names if all(map(_is_there, known[RUNNERS[name]].imports))]
    return tuple(_with_weights(chosen, name, known[RUNNERS[name]], model) for name in there)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _with_weights(chosen: Whole, name: str, peer: Peer, model: Path) -> Peer:
    """A peer that runs the very weights of the model, whose GGUF is written if it is not there."""
    runtime = peer.arguments[0]
    target = model.parent / GGUF[runtime]
    if not target.exists():
        command = [sys.executable, "-m", "tests.benchmarks.whole_gguf", str(model.parent)]
        models.run([*command, runtime, str(target)], "GGUF")
    cached = "expanded keys and values" if chosen.expanded else "latent rows"
    return dataclasses.replace(
        peer,
        name=name,
        inside=f"caches {cached} in 16 bits; flash attention; weights in Q4_0",
        attention="expanded-cache" if chosen.expanded else peer.attention,
        tolerance=TOLERANCE,
        model=model.parent,
        threads=THREADS,
    )


def measure(chosen: Whole, say: Callable[[str], None]) -> Iterator[tuple[str, BenchReport]]:
    """The report of each cache type; the original and the others take part in each."""
    original = build(chosen)
    peers = runners(chosen, original)
    for cache_type in chosen.cache_types:
        say(f"optimizing {original.parent.name}, {cache_type} cache")
        optimized = models.optimized(original, cache="static", cache_type=cache_type)
        settings = Settings(
            original, optimized, chosen.points, THREADS, chosen.rounds, chosen.seconds
        )
        yield cache_type, runner.bench(settings, peers, say=lambda text, _, __: say(text))


def sheet(chosen: Whole, cache_type: str, report: BenchReport) -> Sheet:
    """Everybody at every point."""
    rows = tuple(
        (
            f"{one.participant}, {_where(one)}",
            number(one.min_ms),
            number(one.median_ms),
            number(1e3 * one.query / one.min_ms),
            number(one.loaded_mb + one.beyond_mb),
            number(one.faster),
        )
        for one in report.measurements
    )
    columns = ("who, and where", "min ms", "median ms", "tokens/s", "peak MB", "times the original")
    title = f"{chosen.model}, {cache_type} cache ({THREADS} threads, batch 1)"
    return Sheet(title, columns, rows)


def figures(chosen: Whole, report: BenchReport, cache_type: str) -> list[Figure]:
    """The kernel against the original and against the others, at every point."""
    found = []
    for one in report.measurements:
        if one.participant not in ("original", *RUNNERS):
            continue
        ours = min(
            (m for m in report.measurements if _place(m) == _place(one) and _is_ours(m)),
            key=lambda m: m.min_ms,
        )
        what = f"whole model, {cache_type} cache, {_where(one)}: against {one.participant}"
        wanted = chosen.targets.get((one.participant, one.context)) if one.query == 1 else None
        ratios = one.min_ms / ours.min_ms, one.median_ms / ours.median_ms
        found.append(Figure(what, *ratios, target=wanted))
    return found


def _is_ours(one: Measurement) -> bool:
    return one.participant.startswith("optimized")


def _place(one: Measurement) -> tuple[int, int, int]:
    return one.context, one.batch, one.query


def _where(one: Measurement) -> str:
    if one.query > 1:
        return f"prompt of {one.query}"
    return f"a token on {one.context}"
