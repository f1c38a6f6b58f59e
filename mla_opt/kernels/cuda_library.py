"""The compiled CUDA library, for hosts in Python: addresses and sizes in, a launch out.

    problem = cuda_problem(element_type=ElementType.BFLOAT16, batch=1, ...)
    size = workspace_bytes(problem, multiprocessors)
    launch(problem, multiprocessors, workspace_address, size, stream)

Needs neither CUDA nor torch to be imported: addresses are numbers, and so is the stream
(``torch.cuda.current_stream().cuda_stream``). ``mla-opt build-kernels`` compiles the library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.kernels.trust import check_library

CUDA_ABI_VERSION = 2
CUDA_LIBRARY_NAME = "libmla_opt_cuda.so"
FOLDER_VARIABLE = "MLA_OPT_CUDA_KERNELS"
WIDTHS = ((512, 64), (256, 32), (512, 0))
"""C and R that there are CUDA kernels for, in this library and in the TensorRT plugin."""
_REMEDY = "run `mla-opt build-kernels --arch ...` where nvcc is"


class ElementType(IntEnum):
    """Types of tensors, by the numbers of ONNX."""

    BOOL = 9
    FLOAT16 = 10
    BFLOAT16 = 16


class CudaProblem(ctypes.Structure):
    """``struct mla_opt_latent_attention``, field for field."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int32),
        ("cache_type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "query_len")),
        *((name, ctypes.c_int64) for name in ("new_len", "cache_len", "kv_lora_rank", "rope_dim")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("query", "latent", "cache", "past_len", "bias")),
        ("bias_strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_void_p) for name in ("sink", "rope_cache")),
        *((name, ctypes.c_void_p) for name in ("output", "new_cache", "new_rope_cache")),
        ("even_cache", ctypes.c_int32),
    )


class _Failure(ctypes.Structure):
    """``struct mla_opt_failure``."""

    _fields_ = (("message", ctypes.c_char * 256), ("host_error", ctypes.c_void_p))


def cuda_problem(
    *,
    element_type: ElementType,
    batch: int,
    heads: int,
    query_len: int,
    new_len: int,
    cache_len: int,
    kv_lora_rank: int,
    rope_dim: int,
    scale: float,
    causal: bool,
    query: int,
    output: int,
    latent: int = 0,
    cache: int = 0,
    past_len: int = 0,
    bias: int = 0,
    bias_type: ElementType | None = None,
    bias_strides: Sequence[int] = (0, 0, 0, 0),
    sink: int = 0,
    rope_cache: int = 0,
    new_cache: int = 0,
    new_rope_cache: int = 0,
) -> CudaProblem:
    """Return a problem; the meaning of all is that of `mla_opt.operator.contract`.

    Tensors are dense and given by their addresses on the device, 0 for those that are not there:
    ``query`` [B, H, S, C+R], ``latent`` [B, 1, L, C+R], ``cache`` [B, 1, M, C+R] or, with
    ``rope_cache`` [B, 1, M, R], [B, 1, M, C], ``past_len`` [B] int32, ``sink`` [H], ``output``
    [B, H, S, C]. ``bias_strides`` are elements between neighbours along B, H, S, T, 0 where it
    broadcasts. ``new_cache`` may be ``cache`` itself when ``past_len`` is given.
    """
    return CudaProblem(
        struct_size=ctypes.sizeof(CudaProblem),
        type=element_type,
        cache_type=element_type,
        bias_type=element_type if bias_type is None else bias_type,
        causal=causal,
        batch=batch,
        heads=heads,
        query_len=query_len,
        new_len=new_len,
        cache_len=cache_len,
        kv_lora_rank=kv_lora_rank,
        rope_dim=rope_dim,
        scale=scale,
        query=query,
        latent=latent,
        cache=cache,
        past_len=past_len,
        bias=bias,
        bias_strides=(ctypes.c_int64 * 4)(*bias_strides),
        sink=sink,
        rope_cache=rope_cache,
        output=output,
        new_cache=new_cache,
        new_rope_cache=new_rope_cache,
    )


class CudaLibrary:
    """One compiled library.

    Raises:
        KernelUnavailableError: it is not there, cannot be loaded, or is of another release.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise KernelUnavailableError(f"the CUDA kernels {path} are not there: {_REMEDY}")
        try:
            self._library = ctypes.CDLL(os.fspath(path))
            version = int(self._library.mla_opt_cuda_abi_version())
        except (OSError, AttributeError) as error:
            raise KernelUnavailableError(
                f"the CUDA kernels {path} cannot be loaded: {error}; {_REMEDY}"
            ) from error
        if version != CUDA_ABI_VERSION:
            raise KernelUnavailableError(
                f"the CUDA kernels {path} have ABI version {version}, this release needs"
                f" {CUDA_ABI_VERSION}: {_REMEDY}"
            )
        self.path = path
        self._declare()

    def _declare(self) -> None:
        library, problem = self._library, ctypes.POINTER(CudaProblem)
        library.mla_opt_cuda_architectures.restype = ctypes.c_char_p
        workspace = library.mla_opt_cuda_latent_attention_workspace
        workspace.restype, workspace.argtypes = ctypes.c_size_t, (problem, ctypes.c_int)
        library.mla_opt_cuda_latent_attention_launch.argtypes = (
            problem,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.POINTER(_Failure),
        )

    def multiprocessors(self) -> int:
        """Return how many the current device has; 0 when no device can be used."""
        return int(self._library.mla_opt_cuda_multiprocessors())

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures whose code it holds, as nvcc names them: ``("80", "90")``."""
        names: bytes = self._library.mla_opt_cuda_architectures()
        return tuple(names.decode().split())

    def workspace_bytes(self, problem: CudaProblem, multiprocessors: int) -> int:
        """Return the bytes of device memory that a launch of ``problem`` needs.

        It does for smaller problems and fewer multiprocessors too; 0: for up to 192 of them.
        """
        function = self._library.mla_opt_cuda_latent_attention_workspace
        return int(function(ctypes.byref(problem), multiprocessors))

    def loads_in_bulk(self, problem: CudaProblem) -> bool:
        """Whether a launch on the current device loads keys by its tensor memory accelerator."""
        function = self._library.mla_opt_cuda_latent_attention_loads_in_bulk
        return bool(function(ctypes.byref(problem)))

    def launch(
        self,
        problem: CudaProblem,
        multiprocessors: int,
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Start the attention and the writing of its caches on the current device; do not wait.

        ``workspace`` must not be used by anything else until ``stream`` is past this.

        Raises:
            InputError: the problem has no kernel, is malformed, or could not be started.
        """
        failure = _Failure()
        function = self._library.mla_opt_cuda_latent_attention_launch
        if function(
            ctypes.byref(problem),
            multiprocessors,
            workspace,
            workspace_bytes,
            stream,
            ctypes.byref(failure),
        ):
            raise InputError(f"LatentAttention: {failure.message.decode(errors='replace')}")


def cuda_kernel_folder() -> Path:
    """Return where the libraries lie: what `MLA_OPT_CUDA_KERNELS` names, else beside this file."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).resolve().parent)


def cuda_kernel_library() -> Path:
    """Return the path of the library.

    Raises:
        KernelUnavailableError: it was not built, or cannot be used by this release.
    """
    return load_cuda_library(cuda_kernel_folder()).path


def cuda_kernel_available() -> bool:
    """Whether there is a library of this release; it does not ask for a GPU."""
    try:
        cuda_kernel_library()
    except KernelUnavailableError:
        return False
    return True


@functools.cache
def load_cuda_library(folder: Path) -> CudaLibrary:
    """Return the library of a folder, loaded once.

    Raises:
        KernelUnavailableError: it was not built, or cannot be used by this release.
    """
    path = folder / CUDA_LIBRARY_NAME
    if path.exists():
        check_library(path)
    return CudaLibrary(path)


def workspace_bytes(problem: CudaProblem, multiprocessors: int) -> int:
    """Return the bytes of device memory that a launch needs: `CudaLibrary.workspace_bytes`."""
    return load_cuda_library(cuda_kernel_folder()).workspace_bytes(problem, multiprocessors)


def launch(
    problem: CudaProblem, multiprocessors: int, workspace: int, workspace_bytes: int, stream: int
) -> None:
    """Start the attention: `CudaLibrary.launch`."""
    library = load_cuda_library(cuda_kernel_folder())
    library.launch(problem, multiprocessors, workspace, workspace_bytes, stream)
