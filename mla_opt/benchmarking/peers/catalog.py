"""Which peers there are, what each does inside, and what would install it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.benchmarking.process import WorkerProcess
from mla_opt.benchmarking.report import Kind, MissingPeer
from mla_opt.cost_model import CostForm

#: Largest difference of logits over their spread that each precision explains.
FLOAT32, FLOAT16 = 1e-3, 5e-2
#: Weights rounded to 4 bits are others: a model that computes something else is 4 to 6 away.
FOUR_BITS = 2.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Something else that runs the same weights.

    Attributes:
        inside: what it does with the cache, in one line.
        module: its worker.
        arguments: of that worker, before the model's folder and the number of threads.
        imports: what must be importable.
        install: what would make it so.
        attention: how its attention computes, in the terms of the cost model.
        tolerance: largest difference of logits, relative to their spread, that is no mistake.
        cache_bytes: bytes of a number in its cache; `None`: as many as the original's numbers.
    """

    name: str
    inside: str
    module: str
    arguments: tuple[str, ...]
    imports: tuple[str, ...]
    install: str
    attention: CostForm
    tolerance: float = FLOAT32
    cache_bytes: int | None = None
    model: Path = Path()
    threads: int = 1

    @property
    def kind(self) -> Kind:
        """A peer."""
        return "peer"

    def start(self, folder: Path) -> WorkerProcess:
        """Start a process with the model loaded; what is made from it is kept in `folder`."""
        common = [str(self.model), str(self.threads), str(folder)]
        return WorkerProcess(self.name, self.module, [*self.arguments, *common])

    def form(self, query: int) -> CostForm | None:
        """How its attention computes `query` new tokens."""
        del query
        return self.attention

    def logits(self, worker: WorkerProcess, ids: Sequence[Any], folder: Path) -> npt.NDArray[Any]:
        """Logits ``[1, vocabulary]`` after the prompt `ids`, ``[1, S]``, from an empty cache on."""
        path = folder / "logits.npy"
        worker.ask("prompt", ids=list(ids), path=str(path))
        logits: npt.NDArray[Any] = np.load(path)
        return logits


_TORCH = "mla_opt.benchmarking.peers.torch_worker"
_HUGGING_FACE = ("torch", "transformers")
_LLAMA = "mla_opt.benchmarking.peers.llama_worker"
_GGUF = ("gguf", "safetensors", "torch")
_IK_INSTALL = "pip install ik-llama-cpp-python gguf safetensors torch"
_IK_INSIDE = (
    "caches latent rows; absorbed for steps, expanded for prompts, by flash attention in both;"
    " {} weights and a 16-bit cache; beyond 512 tokens the cache repeats"
)

PEERS: tuple[Peer, ...] = (
    Peer(
        name="Hugging Face eager",
        inside="caches latent rows by concatenation, expands all of them at every step; float32",
        module=_TORCH,
        arguments=("eager",),
        imports=_HUGGING_FACE,
        install="pip install torch transformers",
        attention="expanded",
    ),
    Peer(
        name="Hugging Face sdpa",
        inside="the same, then one fused attention over the expanded keys and values; float32",
        module=_TORCH,
        arguments=("sdpa",),
        imports=_HUGGING_FACE,
        install="pip install torch transformers",
        attention="expanded",
    ),
    Peer(
        name="OpenVINO",
        inside="keeps latent rows as state, expands all of them at every step, then MatMul and"
        " Softmax; float32",
        module="mla_opt.benchmarking.peers.openvino_worker",
        arguments=(),
        imports=("openvino", *_HUGGING_FACE),
        install="pip install openvino torch transformers",
        attention="expanded",
    ),
    Peer(
        name="llama.cpp f16",
        inside="absorbed: caches latent rows and attends to them by flash attention; 16-bit weights"
        " and cache, its default; beyond 512 tokens the cache repeats",
        module=_LLAMA,
        arguments=("llama.cpp", "f16", "f16"),
        imports=("llama_cpp", *_GGUF),
        install="pip install llama-cpp-python gguf safetensors torch",
        attention="factored",
        tolerance=FLOAT16,
        cache_bytes=2,
    ),
    Peer(
        name="llama.cpp f32",
        inside="absorbed, by separate matrix products and softmax; 32-bit weights and cache",
        module=_LLAMA,
        arguments=("llama.cpp", "f32", "f32"),
        imports=("llama_cpp", *_GGUF),
        install="pip install llama-cpp-python gguf safetensors torch",
        attention="factored",
    ),
    Peer(
        name="ik_llama.cpp f16",
        inside=_IK_INSIDE.format("16-bit"),
        module=_LLAMA,
        arguments=("ik_llama.cpp", "f16", "f16"),
        imports=("ik_llama_cpp", *_GGUF),
        install=_IK_INSTALL,
        attention="factored",
        tolerance=FLOAT16,
        cache_bytes=2,
    ),
    Peer(
        name="ik_llama.cpp Q4_0",
        inside=_IK_INSIDE.format("4-bit"),
        module=_LLAMA,
        arguments=("ik_llama.cpp", "q4_0", "f16"),
        imports=("ik_llama_cpp", *_GGUF),
        install=_IK_INSTALL,
        attention="factored",
        tolerance=FOUR_BITS,
        cache_bytes=2,
    ),
)


def installed(model: Path, threads: int) -> tuple[list[Peer], list[MissingPeer]]:
    """Return the peers that can be imported here, and the others with what would install them."""
    from dataclasses import replace

    there: list[Peer] = []
    missing: list[MissingPeer] = []
    for peer in PEERS:
        absent = [name for name in peer.imports if importlib.util.find_spec(name) is None]
        if absent:
            reason = f"{', '.join(absent)} cannot be imported"
            missing.append(MissingPeer(peer.name, reason, peer.install))
        else:
            there.append(replace(peer, model=model, threads=threads))
    return there, missing
