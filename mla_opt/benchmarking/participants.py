"""Who takes turns: the models under test, and peers. Each runs in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mla_opt import kernels
from mla_opt.benchmarking.onnx_worker import Job
from mla_opt.benchmarking.pair import Pair, Side
from mla_opt.benchmarking.process import WorkerProcess
from mla_opt.benchmarking.report import Kind
from mla_opt.cost_model import CostForm

ORIGINAL, BODY, KERNEL = "original", "optimized", "optimized, kernel"


class Participant(Protocol):
    """Something that is timed."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def kind(self) -> Kind:
        """Whether it is one of the two models or something else that runs the same weights."""

    @property
    def inside(self) -> str:
        """What it does with the cache, in one line."""

    def start(self, folder: Path) -> WorkerProcess:
        """Start a process with the model loaded; `folder` is for what it needs to be told.

        Raises:
            WorkerError: it cannot be loaded.
        """

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of a number in its cache; `None`: as many as the original's numbers."""

    def form(self, query: int) -> CostForm | None:
        """How its attention computes `query` new tokens, if that is known."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the two ONNX models, in ONNX Runtime."""

    name: str
    kind: Kind
    inside: str
    pair: Pair
    side: Side
    threads: int
    kernel: bool = False

    def start(self, folder: Path) -> WorkerProcess:
        """Load it in a process of its own."""
        return self._start(folder, twin=False)

    def start_twin(self, folder: Path) -> WorkerProcess:
        """Load it with its activations in floating point, to be compared and not to be timed."""
        return self._start(folder, twin=True)

    def _start(self, folder: Path, *, twin: bool) -> WorkerProcess:
        job = Job(self.pair, self.side, self.threads, self.kernel, twin)
        kind = f"{self.side}-{'kernel' if self.kernel else 'plain'}"
        path = job.write(folder / f"{kind}{'-twin' if twin else ''}.job")
        return WorkerProcess(self.name, "mla_opt.benchmarking.onnx_worker", [str(path)])

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of a number in its cache, where they are narrower than the rest."""
        return self.pair.cache_bytes(self.side)

    def form(self, query: int) -> CostForm | None:
        """How its attention computes `query` new tokens; not known where the kernel decides."""
        form = self.pair.form(self.side, query)
        return None if self.kernel and form == "expanded" else form


_INSIDE: dict[str | None, str] = {
    "expanded": "caches latent rows, expands all of them again at every step",
    "expanded-cache": "caches expanded keys and values",
    "factored": "caches latent rows and attends to them as they are",
    None: "no latent attention was found in it",
}


def _prompts(pair: Pair, why: str) -> str:
    """From how many new tokens on keys and values are expanded, and why."""
    first = pair.expands_from
    return "" if first is None else f"; expands from about {first} new tokens on, as far as {why}"


def variants(pair: Pair, threads: int) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """Return every way to run the two models here, and what cannot be shown, in words."""
    inside = _INSIDE[pair.form("optimized", 1)]
    body = f"{inside}{_prompts(pair, 'that takes fewer operations')}; standard operators"
    found = [
        Variant(ORIGINAL, "original", _INSIDE[pair.form("original", 1)], pair, "original", threads),
        Variant(BODY, "optimized", body, pair, "optimized", threads),
    ]
    if not pair.has_operator:
        return tuple(found), ("no kernel: the optimized model holds no mla_opt::LatentAttention",)
    if not kernels.kernel_available():
        return tuple(found), ("no kernel: this installation was made without the kernel library",)
    fast = _prompts(pair, "the kernel's own rates say so")
    text = f"{inside}{fast}; one fused kernel ({kernels.cpu_tier()})"
    found.append(Variant(KERNEL, "optimized", text, pair, "optimized", threads, kernel=True))
    return tuple(found), ()
