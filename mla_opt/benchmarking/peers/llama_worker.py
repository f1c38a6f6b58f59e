"""llama.cpp on the same weights, in a process of its own.

    python -m mla_opt.benchmarking.peers.llama_worker f16|f32 DIR THREADS FOLDER

f16 is how it runs by default: 16-bit weights and cache, flash attention. f32 is both in 32 bits,
without flash attention, which would read the cache in 16 bits anyway.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from mla_opt.benchmarking.memory import die_first
from mla_opt.benchmarking.peers.convert import converted
from mla_opt.benchmarking.peers.llama_state import lengthened
from mla_opt.benchmarking.peers.stepping import TOKEN, Ids, SteppingWorker
from mla_opt.benchmarking.serving import serve

CONVERTER = "mla_opt.benchmarking.peers.gguf_convert"
#: Tokens that are really decoded; a longer context repeats their rows.
REAL_TOKENS = 512


class LlamaError(Exception):
    """llama.cpp returned that it could not do something."""


class LlamaWorker(SteppingWorker):
    """A model and one context at a time."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.precision, self.threads = precision, threads
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        # Mapped pages would only show up in memory as steps touch them.
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        # Weights repacked for AMX, the only ones of 16 bits that are: llama.cpp then finds nobody
        # to multiply by W_UK, which has three dimensions, and aborts.
        params.use_extra_bufts = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise LlamaError(f"{path} cannot be loaded")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.context: Any = None
        super().__init__()

    def fill(self) -> None:
        """Some real tokens, repeated, in every sequence."""
        point = self.point
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        rows = point.context + point.query * (point.growth + 1)
        self.context = self._context(rows, point.batch, max(point.batch * point.query, REAL_TOKENS))
        if not point.context:
            return
        real = min(point.context, REAL_TOKENS)
        ids = (np.arange(real) % min(self.vocabulary, 61)).tolist()
        self._decode(self.context, Tokens([ids], 0))
        state = lengthened(self._state(), point.context)
        for sequence in range(point.batch):
            self._set_state(state, sequence)

    def restore(self) -> None:
        """Forget everything behind the context."""
        memory = llama_cpp.llama_get_memory(self.context)
        for sequence in range(self.point.batch):
            llama_cpp.llama_memory_seq_rm(memory, sequence, self.point.context, -1)

    def rewind(self) -> None:
        """The rows before the context are still there."""
        self.restore()

    def prepare(self, start: int) -> Tokens:
        """A batch of tokens; logits of the last of each sequence."""
        return Tokens([[TOKEN] * self.point.query] * self.point.batch, start)

    def run(self, prepared: Tokens) -> None:
        """Decode it."""
        self._decode(self.context, prepared)

    def logits(self, ids: Ids) -> npt.NDArray[Any]:
        """Logits of the last position, in a context of its own."""
        length = len(ids[0])
        context = self._context(length, 1, length)
        self._decode(context, Tokens([list(ids[0])], 0))
        row = llama_cpp.llama_get_logits_ith(context, -1)
        logits = np.ctypeslib.as_array(row, (self.vocabulary,)).copy()
        llama_cpp.llama_free(context)
        return logits[None]

    def _context(self, rows: int, sequences: int, tokens: int) -> Any:
        half = self.precision == "f16"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * sequences, sequences
        params.n_batch, params.n_ubatch = tokens, min(tokens, 512)
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F16 if half else llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
            if half
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise LlamaError(f"no context of {rows} tokens for {sequences} sequences")
        return context

    def _decode(self, context: Any, tokens: Tokens) -> None:
        code = llama_cpp.llama_decode(context, tokens.batch)
        if code:
            raise LlamaError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(context)

    def _state(self) -> bytes:
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self.context, buffer, size, 0)
        return bytes(buffer[:written])

    def _set_state(self, state: bytes, sequence: int) -> None:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not llama_cpp.llama_state_seq_set_data(self.context, buffer, len(state), sequence):
            raise LlamaError("the made-up cache was not taken")


class Tokens:
    """The same number of tokens for each sequence, as llama.cpp takes them."""

    def __init__(self, rows: list[list[int]], start: int) -> None:
        count = sum(map(len, rows))
        self.batch = llama_cpp.llama_batch_init(count, 0, 1)
        self.batch.n_tokens = count
        at = 0
        for sequence, row in enumerate(rows):
            for offset, token in enumerate(row):
                self.batch.token[at] = token
                self.batch.pos[at] = start + offset
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = offset == len(row) - 1
                at += 1

    def __del__(self) -> None:
        llama_cpp.llama_batch_free(self.batch)


def _file(model: str, precision: str, folder: str) -> Path:
    """The GGUF that lies in the model's folder, if there is one; else one made from its weights."""
    ready = sorted(Path(model).glob("*.gguf"))
    if ready:
        return ready[0]
    return converted(CONVERTER, [model, precision], Path(folder) / f"model-{precision}.gguf")


def main(precision: str, model: str, threads: str, folder: str) -> None:
    """Serve requests until standard input ends."""
    die_first()
    serve(lambda: LlamaWorker(_file(model, precision, folder), precision, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:5])
