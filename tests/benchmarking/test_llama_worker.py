"""The worker of llama.cpp's family, with a stand-in for the libraries."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mla_opt.benchmarking.peers import llama_library, llama_worker
from mla_opt.benchmarking.peers.ik_llama_library import IkLlamaCpp
from mla_opt.benchmarking.peers.llama_library import LlamaCpp, LlamaError
from mla_opt.benchmarking.peers.llama_worker import LlamaWorker, file_of
from mla_opt.benchmarking.peers.stepping import TOKEN
from tests.benchmarking.llama_stand_in import VOCABULARY, StandIn, ik_llama_cpp
from tests.benchmarking.test_llama_state import state


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> tuple[IkLlamaCpp, StandIn]:
    api, behind = ik_llama_cpp()
    package: Any = ModuleType("ik_llama_cpp")
    package._ctypes_api = api
    monkeypatch.setitem(sys.modules, "ik_llama_cpp", package)
    monkeypatch.setitem(sys.modules, "ik_llama_cpp._ctypes_api", api)
    return IkLlamaCpp(), behind


def worker(library: IkLlamaCpp, cache: str = "f16") -> LlamaWorker:
    return LlamaWorker(library, Path("model.ik.gguf"), cache, 2)


def test_it_caches_latent_rows_and_repacks_weights(library: tuple[IkLlamaCpp, StandIn]) -> None:
    own, behind = library
    made = worker(own)
    assert made.vocabulary == VOCABULARY
    assert (behind.model_params.mla, behind.model_params.use_mmap) == (3, False)
    assert behind.model_params.repack_tensors
    made.setup(16, 1, 1)
    params = behind.context_params
    assert (params.mla_attn, params.flash_attn, params.type_k) == (3, True, 1)
    assert (params.n_threads, params.n_threads_batch) == (2, 2)


@pytest.mark.parametrize(("context", "batch", "query"), [(700, 2, 1), (40, 1, 8), (0, 1, 512)])
def test_steps_go_on_where_the_context_ends(
    library: tuple[IkLlamaCpp, StandIn], context: int, batch: int, query: int
) -> None:
    """A context beyond the tokens that are really decoded is theirs, repeated, in all sequences."""
    own, behind = library
    made = worker(own)
    made.setup(context, batch, query)
    sequences = behind.contexts[-1]
    assert [list(known) for known in sequences.values()] == [list(range(context))] * batch
    for known in sequences.values():
        assert all(known[place] == known[place % llama_worker.REAL_TOKENS] for place in known)
    for steps in (1, 2):
        made.step()
        end = context + query * (steps if made.point.fed_back else 1)
        assert [len(known) for known in sequences.values()] == [end] * batch
        assert all(known[end - 1] == TOKEN for known in sequences.values())
    made.restore()
    assert [len(known) for known in sequences.values()] == [context] * batch


def test_logits_come_from_an_empty_cache(library: tuple[IkLlamaCpp, StandIn]) -> None:
    own, behind = library
    made = worker(own)
    made.setup(30, 1, 1)
    logits = made.logits([[5, 9, 11]])
    assert logits.shape == (1, VOCABULARY)
    assert logits[0, :2].tolist() == [3.0, 11.0]
    del made
    assert behind.batches == 0


def test_what_cannot_be_had_is_said(library: tuple[IkLlamaCpp, StandIn]) -> None:
    own, behind = library
    with pytest.raises(LlamaError, match=r"broken\.gguf cannot be loaded"):
        LlamaWorker(own, Path("broken.gguf"), "f16", 1)
    with pytest.raises(LlamaError, match="16 bits"):
        worker(own, "f32").setup(4, 1, 1)
    behind.decode = None  # type: ignore[assignment]
    own.api.llama_decode = lambda context, batch: 3
    with pytest.raises(LlamaError, match="llama_decode returned 3"):
        worker(own).setup(4, 1, 1)


class Cells:
    """llama.cpp's cache as positions of each sequence, and how large its states were."""

    def __init__(self, sequences: int) -> None:
        self.of = {sequence: [] for sequence in range(sequences)}
        self.sizes: list[int] = []
        self.llama_get_memory = lambda context: context
        self.llama_n_seq_max = lambda context: sequences

    def llama_state_seq_set_data(self, context: int, state: Any, size: int, sequence: int) -> int:
        (count,) = struct.unpack_from("<I", bytes(state), 12)
        cells = np.frombuffer(bytes(state), np.dtype("<i4,<u4,<i4"), count, 16)
        self.of[sequence] = cells["f0"].tolist()
        self.sizes.append(count)
        return size

    def llama_memory_seq_cp(self, memory: int, source: int, target: int, *ends: int) -> None:
        assert ends == (-1, -1)
        self.of[target] = self.of[target] + self.of[source]

    def llama_memory_seq_rm(self, memory: int, sequence: int, *ends: int) -> None:
        assert ends == (-1, -1)
        self.of[sequence] = []


@pytest.mark.parametrize("rows", [5, 8, 9, 20])
def test_a_long_cache_is_made_up_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position once, and no more than a piece of it twice in memory."""
    monkeypatch.setattr(llama_library, "PIECE", 8)
    library = LlamaCpp.__new__(LlamaCpp)
    library.api = cells = Cells(2)
    cells.of[0] = [0, 1, 2, 3]  # really decoded
    assert library.fill(0, state(4), rows, 0)
    assert cells.of == {0: list(range(rows)), 1: []}
    assert max(cells.sizes) <= 8


def test_each_takes_the_file_that_is_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(llama_worker, "converted", lambda *given: asked.append(given) or given[-1])
    model, folder = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    made = file_of(IkLlamaCpp, str(model), "q4_0", str(folder))
    assert asked == [
        (
            llama_worker.CONVERTER,
            [str(model), "ik_llama.cpp", "q4_0"],
            folder / "ik_llama.cpp-q4_0.gguf",
        )
    ]
    assert made == folder / "ik_llama.cpp-q4_0.gguf"
    (model / "model.gguf").touch()
    assert file_of(LlamaCpp, str(model), "f16", str(folder)) == model / "model.gguf"
    assert file_of(IkLlamaCpp, str(model), "f16", str(folder)).parent == folder
    (model / "any.gguf").touch()
    assert file_of(IkLlamaCpp, str(model), "f16", str(folder)) == model / "any.gguf"
    (model / "model.ik.gguf").touch()
    assert file_of(IkLlamaCpp, str(model), "f16", str(folder)) == model / "model.ik.gguf"
