"""A stand-in for the binding of ik_llama.cpp: it keeps the positions of every sequence.

Its cache of a token is one byte, the token; logits are where the sequence ends, in the first place,
and the token that was read last, in the second.
"""

from __future__ import annotations

import ctypes
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCABULARY = 64


class _Function:
    """A function that types may be set of, as `ctypes` has it."""

    def __init__(self, call: Any) -> None:
        self.call, self.argtypes, self.restype = call, [], None

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class StandIn:
    """What is behind the binding; every parameter that was set, and every context, is kept."""

    def __init__(self, api: Any) -> None:
        self.model_params, self.context_params = SimpleNamespace(), SimpleNamespace()
        self.contexts: list[dict[int, dict[int, int]]] = []
        self.files: list[bytes] = []
        self.batches = 0
        api.llama_backend_init = lambda: None
        api.llama_model_default_params = lambda: self.model_params
        api.llama_context_default_params = lambda: self.context_params
        api.llama_model_load_from_file = self.load
        api.llama_model_get_vocab = lambda model: model
        api.llama_vocab_n_tokens = lambda vocab: VOCABULARY
        api.llama_init_from_model = self.create
        api.llama_free = lambda context: None
        api.llama_batch_init, api.llama_batch_free = self.batch, self.free_batch
        api.llama_decode, api.llama_get_logits_ith = self.decode, self.logits

    def load(self, path: bytes, params: Any) -> int:
        self.files.append(path)
        return 0 if path.endswith(b"broken.gguf") else 1

    def create(self, model: int, params: Any) -> int:
        self.contexts.append({sequence: {} for sequence in range(params.n_seq_max)})
        return len(self.contexts)

    def of(self, context: int) -> dict[int, dict[int, int]]:
        return self.contexts[context - 1]

    def batch(self, count: int, embeddings: int, sequences: int) -> Any:
        self.batches += 1
        rows: list[list[int]] = [[0] for _ in range(count)]
        places = {name: [0] * count for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=rows, **places)

    def free_batch(self, batch: Any) -> None:
        self.batches -= 1

    def decode(self, context: int, batch: Any) -> int:
        for token, position, ids in zip(batch.token, batch.pos, batch.seq_id):
            known = self.of(context)[ids[0]]
            if position != len(known):
                return 1
            known[position] = token
        return 0

    def logits(self, context: int, place: int) -> Any:
        known = self.of(context)[0]
        made = (ctypes.c_float * VOCABULARY)(len(known), known[len(known) - 1])
        return ctypes.cast(made, ctypes.POINTER(ctypes.c_float))

    def forget(self, context: int, sequence: int, start: int, end: int) -> bool:
        known = self.of(context)[sequence]
        for position in [each for each in known if each >= start]:
            del known[position]
        return True

    def state(self, context: int) -> bytes:
        """As ik_llama.cpp has it: two layers of keys, no values."""
        known = self.of(context)[0]
        cells = b"".join(struct.pack("<iI", position, 0) for position in known)
        layer = struct.pack("<iQ", 1, 1) + bytes(known.values())
        return (
            struct.pack("<I", len(known)) + cells + struct.pack("<II", 2, 2) + 2 * layer + b"\0" * 4
        )

    def read(self, context: int, state: bytes, sequence: int) -> int:
        (count,) = struct.unpack_from("<I", state)
        positions = np.frombuffer(state, np.dtype("<i4,<u4"), count, 4)["f0"]
        start = 4 + 8 * count + 8 + 12
        self.of(context)[sequence] = dict(zip(positions.tolist(), state[start : start + count]))
        return len(state)


def ik_llama_cpp() -> tuple[Any, StandIn]:
    """The module ``ik_llama_cpp._ctypes_api``, and what stands behind it."""
    api = SimpleNamespace(_lib=SimpleNamespace())
    made = StandIn(api)

    def get(context: int, buffer: Any, size: int, sequence: int, flags: int) -> int:
        state = made.state(context)
        buffer[:] = list(state)
        return len(state)

    calls = {
        "llama_kv_cache_seq_rm": made.forget,
        "llama_state_seq_get_size": lambda context, sequence, flags: len(made.state(context)),
        "llama_state_seq_get_data": get,
        "llama_state_seq_set_data": lambda context, state, size, sequence, flags: made.read(
            context, bytes(state), sequence
        ),
        "llama_synchronize": lambda context: None,
    }
    for name, call in calls.items():
        setattr(api._lib, name, _Function(call))
    return api, made
