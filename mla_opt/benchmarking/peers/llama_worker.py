"""llama.cpp, or ik_llama.cpp, on the same weights, in a process of its own.

    python -m mla_opt.benchmarking.peers.llama_worker LIBRARY WEIGHTS CACHE DIR THREADS FOLDER

LIBRARY is `llama.cpp` or `ik_llama.cpp`. WEIGHTS are f16, f32 or q4_0, CACHE is f16, f32 or q8_0.
They run with 16 bits of both and flash attention by default; a cache of f32 goes without it, since
it would read the cache in 16 bits anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.benchmarking.memory import die_first
from mla_opt.benchmarking.peers.convert import converted
from mla_opt.benchmarking.peers.ik_llama_library import IkLlamaCpp
from mla_opt.benchmarking.peers.llama_library import LlamaCpp, LlamaError, LlamaLibrary
from mla_opt.benchmarking.peers.stepping import TOKEN, Ids, SteppingWorker
from mla_opt.benchmarking.serving import serve

LIBRARIES: dict[str, type[LlamaLibrary]] = {
    library.runtime: library for library in (LlamaCpp, IkLlamaCpp)
}
CONVERTER = "mla_opt.benchmarking.peers.gguf_convert"
#: Tokens that are really decoded; a longer context repeats their rows.
REAL_TOKENS = 512


class LlamaWorker(SteppingWorker):
    """A model and one context at a time."""

    def __init__(self, library: LlamaLibrary, path: Path, cache: str, threads: int) -> None:
        self.library, self.cache, self.threads = library, cache, threads
        self.model = library.load(path)
        if not self.model:
            raise LlamaError(f"{path} cannot be loaded")
        self.vocabulary = library.vocabulary(self.model)
        self.context: Any = None
        super().__init__()

    def fill(self) -> None:
        """Some real tokens, repeated, in every sequence."""
        point = self.point
        if self.context is not None:
            self.library.api.llama_free(self.context)
        rows = point.context + point.query * (point.growth + 1)
        self.context = self._context(rows, point.batch, max(point.batch * point.query, REAL_TOKENS))
        if not point.context:
            return
        real = min(point.context, REAL_TOKENS)
        ids = (np.arange(real) % min(self.vocabulary, 61)).tolist()
        self._decode(self.context, Tokens(self.library.api, [ids], 0))
        state = self.library.state(self.context)
        for sequence in range(point.batch):
            if not self.library.fill(self.context, state, point.context, sequence):
                raise LlamaError("the made-up cache was not taken")

    def restore(self) -> None:
        """Forget everything behind the context."""
        for sequence in range(self.point.batch):
            self.library.forget(self.context, sequence, self.point.context)

    def rewind(self) -> None:
        """The rows before the context are still there."""
        self.restore()

    def prepare(self, start: int) -> Tokens:
        """A batch of tokens; logits of the last of each sequence."""
        rows = [[TOKEN] * self.point.query] * self.point.batch
        return Tokens(self.library.api, rows, start)

    def run(self, prepared: Tokens) -> None:
        """Decode it."""
        self._decode(self.context, prepared)

    def logits(self, ids: Ids) -> npt.NDArray[Any]:
        """Logits of the last position, in a context of its own."""
        length = len(ids[0])
        context = self._context(length, 1, length)
        self._decode(context, Tokens(self.library.api, [list(ids[0])], 0))
        row = self.library.api.llama_get_logits_ith(context, -1)
        logits = np.ctypeslib.as_array(row, (self.vocabulary,)).copy()
        self.library.api.llama_free(context)
        return logits[None]

    def _context(self, rows: int, sequences: int, tokens: int) -> Any:
        sizes = rows, sequences, tokens, self.threads
        context = self.library.context(self.model, *sizes, self.cache)
        if not context:
            raise LlamaError(f"no context of {rows} tokens for {sequences} sequences")
        return context

    def _decode(self, context: Any, tokens: Tokens) -> None:
        code = self.library.api.llama_decode(context, tokens.batch)
        if code:
            raise LlamaError(f"llama_decode returned {code}")
        self.library.synchronize(context)


class Tokens:
    """The same number of tokens for each sequence, as llama.cpp takes them."""

    def __init__(self, api: Any, rows: list[list[int]], start: int) -> None:
        self.api, count = api, sum(map(len, rows))
        self.batch = api.llama_batch_init(count, 0, 1)
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
        self.api.llama_batch_free(self.batch)


def file_of(library: type[LlamaLibrary], model: str, precision: str, folder: str) -> Path:
    """The GGUF that lies in the model's folder, if there is one; else one made from its weights.

    One that is named for another library is not taken.
    """
    named = {other.ready for other in LIBRARIES.values()}
    ready = sorted(Path(model).glob("*.gguf"))
    mine = [path for path in ready if path.name == library.ready]
    others = [path for path in ready if path.name not in named]
    if mine or others:
        return (mine or others)[0]
    target = Path(folder) / f"{library.runtime}-{precision}.gguf"
    return converted(CONVERTER, [model, library.runtime, precision], target)


def main(runtime: str, weights: str, cache: str, model: str, threads: str, folder: str) -> None:
    """Serve requests until standard input ends."""
    die_first()
    library = LIBRARIES[runtime]
    path = file_of(library, model, weights, folder)
    serve(lambda: LlamaWorker(library(), path, cache, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:7])
