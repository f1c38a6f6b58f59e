"""What the worker asks of a library of llama.cpp's family; and llama.cpp's, through its binding."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from mla_opt.benchmarking.peers.llama_state import lengthened

#: Rows that are made up at a time: of a whole cache there is not always memory for two.
PIECE = 2048


class LlamaError(Exception):
    """llama.cpp returned that it could not do something."""


class LlamaLibrary(ABC):
    """Functions of one library of the family; models, contexts and batches are its handles.

    Attributes:
        runtime: the name of the layout of its GGUF.
        ready: which files in a model's folder are for it.
        api: the binding.
    """

    runtime: ClassVar[str]
    ready: ClassVar[str]
    api: Any

    @abstractmethod
    def load(self, path: Path) -> Any:
        """The model of a file, its weights in memory; nothing where it cannot be loaded."""

    @abstractmethod
    def context(
        self, model: Any, rows: int, sequences: int, tokens: int, threads: int, cache: str
    ) -> Any:
        """Caches of so many rows a sequence, for calls of so many tokens; nothing on failure.

        ``cache``: the type of their numbers; all but f32 with flash attention.
        """

    @abstractmethod
    def forget(self, context: Any, sequence: int, start: int) -> None:
        """Drop what a sequence has from a position on."""

    @abstractmethod
    def state(self, context: Any) -> bytes:
        """The cache of the first sequence."""

    @abstractmethod
    def fill(self, context: Any, state: bytes, rows: int, sequence: int) -> bool:
        """Give a sequence such a cache, repeated to so many rows; whether it was taken."""

    @abstractmethod
    def synchronize(self, context: Any) -> None:
        """Wait for what was begun."""

    def vocabulary(self, model: Any) -> int:
        """Number of tokens."""
        return int(self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model)))


class LlamaCpp(LlamaLibrary):
    """llama.cpp, by ``llama_cpp``."""

    runtime = "llama.cpp"
    ready = "model.gguf"

    def __init__(self) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()

    def load(self, path: Path) -> Any:
        """The model of a file."""
        params = self.api.llama_model_default_params()
        # Mapped pages would only show up in memory as steps touch them.
        params.load_mode = self.api.LLAMA_LOAD_MODE_NONE
        # Weights repacked for AMX, the only ones of 16 bits that are: llama.cpp then finds nobody
        # to multiply by W_UK, which has three dimensions, and aborts.
        params.use_extra_bufts = False
        return self.api.llama_model_load_from_file(str(path).encode(), params)

    def context(
        self, model: Any, rows: int, sequences: int, tokens: int, threads: int, cache: str
    ) -> Any:
        """Caches, and what attends to them."""
        api, params = self.api, self.api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * sequences, sequences
        if rows > PIECE:  # one more, that is filled in pieces; all share the rows then
            params.n_seq_max, params.kv_unified = sequences + 1, True
        params.n_batch, params.n_ubatch = tokens, min(tokens, 512)
        params.n_threads = params.n_threads_batch = threads
        types = {"f16": api.GGML_TYPE_F16, "f32": api.GGML_TYPE_F32, "q8_0": api.GGML_TYPE_Q8_0}
        params.type_k = params.type_v = types[cache]
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_DISABLED if cache == "f32" else api.LLAMA_FLASH_ATTN_TYPE_AUTO
        )
        return api.llama_init_from_model(model, params)

    def forget(self, context: Any, sequence: int, start: int) -> None:
        """Drop what a sequence has from a position on."""
        memory = self.api.llama_get_memory(context)
        self.api.llama_memory_seq_rm(memory, sequence, start, -1)

    def state(self, context: Any) -> bytes:
        """The cache of the first sequence."""
        size = self.api.llama_state_seq_get_size(context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = self.api.llama_state_seq_get_data(context, buffer, size, 0)
        return bytes(buffer[:written])

    def fill(self, context: Any, state: bytes, rows: int, sequence: int) -> bool:
        """Give a sequence such a cache, repeated; a long one in pieces, which take less memory."""
        if rows <= PIECE:
            return self._set_state(context, lengthened(state, rows), sequence)
        api, memory = self.api, self.api.llama_get_memory(context)
        spare = api.llama_n_seq_max(context) - 1
        for first in range(0, rows, PIECE):
            piece = lengthened(state, min(PIECE, rows - first), first)
            if not self._set_state(context, piece, spare):
                return False
            if first == 0:
                api.llama_memory_seq_rm(memory, sequence, -1, -1)
            api.llama_memory_seq_cp(memory, spare, sequence, -1, -1)
            api.llama_memory_seq_rm(memory, spare, -1, -1)
        return True

    def _set_state(self, context: Any, state: bytearray, sequence: int) -> bool:
        """Give a sequence such a cache; it is as large as llama.cpp's own, and not copied here."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        return bool(self.api.llama_state_seq_set_data(context, buffer, len(state), sequence))

    def synchronize(self, context: Any) -> None:
        """Wait for what was begun."""
        self.api.llama_synchronize(context)
