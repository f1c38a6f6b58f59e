"""The compiled core called from Python, by the C ABI of ``cpu/latent_attention.h``.

`Problem` is its struct, field for field; whoever fills one holds the memory that its pointers lead
to. Nothing is checked here: the core checks what a problem says, and trusts its pointers.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from mla_opt.kernels.library import load_library

# The numbers of ONNX's TensorProto.DataType.
FLOAT32, BOOL, FLOAT16, FLOAT64, BFLOAT16 = 1, 9, 10, 11, 16
UINT8, INT8, FLOAT8E4M3FN, FLOAT8E5M2 = 2, 3, 17, 19

FORMS = ("auto", "absorbed", "expanded")
"""In the order of ``enum mla_opt_form``."""


class Problem(ctypes.Structure):
    """``struct mla_opt_latent_attention``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int32),
        ("cache_type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("query_len", ctypes.c_int64),
        ("new_len", ctypes.c_int64),
        ("cache_len", ctypes.c_int64),
        ("kv_lora_rank", ctypes.c_int64),
        ("rope_dim", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("query", ctypes.c_void_p),
        ("latent", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("past_len", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_strides", ctypes.c_int64 * 4),
        ("sink", ctypes.c_void_p),
        ("rope_cache", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("new_cache", ctypes.c_void_p),
        ("new_rope_cache", ctypes.c_void_p),
        ("even_cache", ctypes.c_int32),
    )


class KvB(ctypes.Structure):
    """``struct mla_opt_kv_b``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("scales_type", ctypes.c_int32),
        ("zero_points_type", ctypes.c_int32),
        ("block_size", ctypes.c_int64),
        ("block_rows", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
    )


class MultiHeadProblem(ctypes.Structure):
    """``struct mla_opt_multi_head_latent_attention``."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("attention", Problem),
        ("kv_b", KvB),
        ("nope_dim", ctypes.c_int64),
        ("v_dim", ctypes.c_int64),
        ("form", ctypes.c_int32),
    )


class Threads(ctypes.Structure):
    """``struct mla_opt_threads``: how many may work, and whose they are (None: the library's)."""

    _fields_ = (("count", ctypes.c_int32), ("team", ctypes.c_void_p))


class _Failure(ctypes.Structure):
    """``struct mla_opt_failure``."""

    _fields_ = (("message", ctypes.c_char * 256), ("host_error", ctypes.c_void_p))


def run(problem: Problem | MultiHeadProblem, threads: Threads) -> str:
    """Compute ``problem`` on CPU threads; the interpreter is free meanwhile.

    Returns:
        Nothing when it is done; else why the core refuses the problem, and nothing was written.

    Raises:
        KernelUnavailableError: there is no library.
    """
    compute, spread = _entry_points(type(problem))
    failure = _Failure()
    if compute(ctypes.byref(problem), spread, ctypes.byref(threads), ctypes.byref(failure)):
        return str(failure.message.decode(errors="replace"))
    return ""


def form(problem: MultiHeadProblem) -> str:
    """The form that ``auto`` takes for a legal problem: ``absorbed`` or ``expanded``."""
    choose = load_library().mla_opt_multi_head_latent_attention_form
    choose.restype = ctypes.c_int32
    return FORMS[choose(ctypes.byref(problem))]


@functools.cache
def _entry_points(
    kind: type[Problem | MultiHeadProblem],
) -> tuple[Callable[..., int], ctypes.c_void_p]:
    library = load_library()
    compute = (
        library.mla_opt_latent_attention_run
        if kind is Problem
        else library.mla_opt_multi_head_latent_attention_run
    )
    compute.restype = ctypes.c_int
    spread = ctypes.cast(library.mla_opt_run_on_threads, ctypes.c_void_p)
    return compute, spread
