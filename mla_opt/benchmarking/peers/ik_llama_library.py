"""ik_llama.cpp, a fork of llama.cpp for CPUs, through ``ik_llama_cpp``.

The binding has a part of the library; what it lacks is called by the header's declarations.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from mla_opt.benchmarking.peers.llama_library import LlamaError, LlamaLibrary
from mla_opt.benchmarking.peers.llama_state import lengthened_older

#: Its default: latent rows alone are cached; prompts are expanded, steps absorbed.
MLA = 3
GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1

_POINTER, _SIZE, _SEQUENCE = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
#: Functions that the binding has not: what they take, and what they return.
_MORE: dict[str, tuple[list[Any], Any]] = {
    "llama_kv_cache_seq_rm": ([_POINTER, _SEQUENCE, _SEQUENCE, _SEQUENCE], ctypes.c_bool),
    "llama_state_seq_get_size": ([_POINTER, _SEQUENCE, ctypes.c_uint32], _SIZE),
    "llama_state_seq_get_data": ([_POINTER, _POINTER, _SIZE, _SEQUENCE, ctypes.c_uint32], _SIZE),
    "llama_state_seq_set_data": ([_POINTER, _POINTER, _SIZE, _SEQUENCE, ctypes.c_uint32], _SIZE),
    "llama_synchronize": ([_POINTER], None),
}


class IkLlamaCpp(LlamaLibrary):
    """ik_llama.cpp, by ``ik_llama_cpp``."""

    runtime = "ik_llama.cpp"
    ready = "model.ik.gguf"

    def __init__(self) -> None:
        from ik_llama_cpp import _ctypes_api

        self.api = _ctypes_api
        self.more = {name: self._function(name) for name in _MORE}
        _ctypes_api.llama_backend_init()

    def _function(self, name: str) -> Any:
        function = getattr(self.api._lib, name)
        function.argtypes, function.restype = _MORE[name]
        return function

    def load(self, path: Path) -> Any:
        """The model of a file; W_UK and W_UV are made of its kv_b."""
        params = self.api.llama_model_default_params()
        # Mapped pages would only show up in memory as steps touch them.
        params.use_mmap = False
        params.repack_tensors = True  # into the layout that its products of few bits are quick with
        params.mla = MLA
        return self.api.llama_model_load_from_file(str(path).encode(), params)

    def context(
        self, model: Any, rows: int, sequences: int, tokens: int, threads: int, cache: str
    ) -> Any:
        """Caches, and what attends to them."""
        if cache != "f16":
            raise LlamaError("its latent caches are of 16 bits")
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * sequences, sequences
        params.n_batch, params.n_ubatch = tokens, min(tokens, 512)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = GGML_TYPE_F16
        params.mla_attn, params.flash_attn = MLA, True
        return self.api.llama_init_from_model(model, params)

    def forget(self, context: Any, sequence: int, start: int) -> None:
        """Drop what a sequence has from a position on."""
        self.more["llama_kv_cache_seq_rm"](context, sequence, start, -1)

    def state(self, context: Any) -> bytes:
        """The cache of the first sequence."""
        size = self.more["llama_state_seq_get_size"](context, 0, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = self.more["llama_state_seq_get_data"](context, buffer, size, 0, 0)
        return bytes(buffer[:written])

    def fill(self, context: Any, state: bytes, rows: int, sequence: int) -> bool:
        """Give a sequence such a cache, repeated."""
        made = lengthened_older(state, rows)
        buffer = (ctypes.c_uint8 * len(made)).from_buffer(made)
        set_data = self.more["llama_state_seq_set_data"]
        return bool(set_data(context, buffer, len(made), sequence, 0))

    def synchronize(self, context: Any) -> None:
        """Wait for what was begun."""
        self.more["llama_synchronize"](context)
