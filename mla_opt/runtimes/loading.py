"""`load` and `generate`: any model that mla-opt has made, in the runtime that it was made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mla_opt.bundles.manifest import kind_of
from mla_opt.errors import InputError
from mla_opt.programs.recognize import PROGRAM_SUFFIX, is_program_file
from mla_opt.runtimes.generation import Choice, Decoder, Stream, TokenCache, continue_sequences
from mla_opt.runtimes.prompts import Tokens, as_rows
from mla_opt.runtimes.result import GenerationResult

Runtime = Literal["onnxruntime", "tensorrt", "torch"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that can generate.

    Attributes:
        path: the folder or the file that it was opened from.
        runtime: what runs it.
        manifest: what was written down when it was exported; ``None`` for a program of PyTorch.
        decoder: what it takes.
        new_cache: makes empty caches for a number of sequences.
    """

    path: Path
    runtime: Runtime
    manifest: Any
    decoder: Decoder
    new_cache: Callable[[int], TokenCache]


def load(path: str | PathLike[str], *, allow_host_code: bool = False) -> LoadedModel:
    """Open a model, whichever runtime it is for.

    Args:
        path: a folder that `mla-opt export` wrote, for ONNX Runtime or TensorRT; or a program of
            PyTorch that `mla-opt optimize` wrote (``.pt2``). Loading a program can run code that is
            in it.
        allow_host_code: whether a library that came with the model may run, though this user has
            not built it; it is code.

    Raises:
        InputError: a file is missing or damaged, is not trusted, or does not fit this machine.
        KernelUnavailableError: ONNX Runtime does not take the library.
    """
    if is_program_file(path):
        return _program(Path(path))
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            f"{path}: is no folder that `mla-opt export` wrote, and no program ({PROGRAM_SUFFIX})"
        )
    opener = _bundle if kind_of(path) == "onnxruntime" else _engines
    return opener(path, allow_host_code)


def _bundle(folder: Path, allow_host_code: bool) -> LoadedModel:
    from mla_opt.runtimes.onnxruntime.bundle import load_bundle
    from mla_opt.runtimes.onnxruntime.cache import LatentCache
    from mla_opt.runtimes.onnxruntime.decoder import decoder_of

    manifest, opened = load_bundle(folder, allow_host_code=allow_host_code)
    decoder = decoder_of(opened)
    return LoadedModel(
        folder,
        "onnxruntime",
        manifest,
        decoder,
        lambda batch: LatentCache(decoder, batch, manifest.rows),
    )


def _engines(folder: Path, allow_host_code: bool) -> LoadedModel:
    from mla_opt.runtimes.tensorrt.cache import EngineCache
    from mla_opt.runtimes.tensorrt.loading import load as load_engines

    engines = load_engines(folder, allow_host_code=allow_host_code)
    return LoadedModel(
        folder,
        "tensorrt",
        engines.manifest,
        engines.decoder,
        lambda batch: EngineCache(engines, batch),
    )


def _program(path: Path) -> LoadedModel:
    try:
        from mla_opt.runtimes.torch.cache import ProgramCache
        from mla_opt.runtimes.torch.program import load_program
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            f"{path}: is a PyTorch program, and PyTorch is missing: pip install torch"
        ) from error
    program = load_program(path)
    return LoadedModel(path, "torch", None, program, lambda batch: ProgramCache(program, batch))


def generate(
    model: LoadedModel,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    stop_tokens: int | Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator | None = None,
    stream: Stream | None = None,
    cache: TokenCache | None = None,
) -> GenerationResult[TokenCache]:
    """Continue one sequence or a batch of them, whichever runtime the model is for.

    Args:
        model: what `load` returned.
        tokens: ids of one sequence, or of several, which may differ in length.
        max_new_tokens: how many each sequence gets at most.
        stop_tokens: a sequence ends with the first of these.
        temperature: 0 takes the most probable token, above that tokens are drawn.
        top_k: only that many of the most probable tokens can be drawn.
        top_p: only the fewest most probable tokens that together have this probability.
        seed: for the draws; a NumPy generator goes on where it is.
        stream: called after every step with one token per sequence, ``[B]`` int64, -1 for
            sequences that have ended.
        cache: what an earlier call returned, to go on from there; it is changed.

    Raises:
        InputError: an argument cannot be used, or the tokens do not fit.
        RunError: the runtime failed.
    """
    choice = Choice(max_new_tokens, stop_tokens, temperature, top_k, top_p, seed, stream)
    if cache is None:
        cache = model.new_cache(len(as_rows(tokens, model.decoder.vocabulary)))
    elif cache.decoder is not model.decoder:
        raise InputError("the cache is of another model than the one given; give that one")
    return continue_sequences(cache, tokens, choice, cache.append)
