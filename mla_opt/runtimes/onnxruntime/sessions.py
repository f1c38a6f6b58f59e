"""`session`: an ONNX Runtime session of any kind of model, with the kernel library if there is one.

ONNX Runtime lets a library be registered on one `SessionOptions` twice and then refuses every
session made with it, so whatever is registered here is remembered.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import onnxruntime as ort

from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.files.model_io import read_model
from mla_opt.kernels import kernel_available, kernel_library
from mla_opt.operator.paged_attention import DOMAIN, OP_TYPE
from mla_opt.runtimes.onnxruntime.decoder import describe, remember
from mla_opt.runtimes.onnxruntime.operand_types import wrong_operand_types
from mla_opt.verification.onnx.sessions import MAX_BYTES_IN_MEMORY, ORT_ERRORS

ModelLike = str | PathLike[str] | bytes | onnx.ModelProto | ir.Model
UseKernel = Literal["auto"] | bool

#: What ONNX Runtime says of a library that its options hold twice: of operators for several types,
#: and of one for any.
TWICE = ("already set in registry", "Conflicting with a registered kernel")

_with_kernel: weakref.WeakSet[ort.SessionOptions] = weakref.WeakSet()


def session(
    model: ModelLike,
    *,
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
    providers: Sequence[Any] | None = None,
    kernel: UseKernel = "auto",
    session_options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Load a model.

    Args:
        model: a path, the bytes of a file, an `onnx.ModelProto` or an `onnx_ir.Model`.
        intra_op_threads: threads of one operator; ONNX Runtime's choice if not given.
        inter_op_threads: operators that run at once.
        providers: execution providers as ONNX Runtime takes them; the CPU if not given.
        kernel: ``True`` runs latent attention by the compiled kernel, ``False`` by the function
            body in the model, ``"auto"`` by the kernel where it was built.
        session_options: options to add to; they may be used for several sessions.

    Raises:
        InputError: the model cannot be read or loaded; the message names the file.
        KernelUnavailableError: ``kernel=True`` and there is none.
    """
    options = _default_options() if session_options is None else session_options
    _set_threads(options, intra_op_threads, inter_op_threads)
    label, graph = read_graph(model)
    registered = _register(options, kernel, label)
    return _described_session(label, model, graph, options, providers, registered)


def session_with_library(
    path: Path, library: Path | None, *, intra_op_threads: int | None = None
) -> ort.InferenceSession:
    """Load a model from a file, with the kernels of another library than this package's.

    Raises:
        InputError: the model cannot be read or loaded.
        KernelUnavailableError: ONNX Runtime does not take the library.
    """
    options = _default_options()
    _set_threads(options, intra_op_threads, None)
    label, graph = read_graph(path)
    if library is not None:
        _take_library(options, library)
    return _described_session(label, path, graph, options, None, library is not None)


def _set_threads(
    options: ort.SessionOptions, intra_op_threads: int | None, inter_op_threads: int | None
) -> None:
    if intra_op_threads is not None:
        options.intra_op_num_threads = intra_op_threads
    if inter_op_threads is not None:
        options.inter_op_num_threads = inter_op_threads


def _described_session(
    label: str,
    model: ModelLike,
    graph: ir.Model,
    options: ort.SessionOptions,
    providers: Sequence[Any] | None,
    registered: bool,
) -> ort.InferenceSession:
    """Load, and note what the file says."""
    try:
        loaded = _loaded(label, model, graph, options, list(providers or ["CPUExecutionProvider"]))
    except InputError as error:
        wrong = _of_another_provider(graph, providers) or wrong_operand_types(graph)
        if wrong is None:
            raise
        raise InputError(f"{label}: {wrong}") from error
    remember(loaded, describe(graph, label, registered))
    return loaded


def _of_another_provider(graph: ir.Model, providers: Sequence[Any] | None) -> str | None:
    """Say that a model is one for servers on CUDA, where none such was asked for."""
    names = [each if isinstance(each, str) else each[0] for each in providers or ()]
    if "CUDAExecutionProvider" in names:
        return None
    if any((node.domain, node.op_type) == (DOMAIN, OP_TYPE) for node in graph.graph):
        return (
            f"it takes packed tokens, for {OP_TYPE}, which only ONNX Runtime's CUDA provider has;"
            " give providers=['CUDAExecutionProvider'], or optimize for target onnxruntime"
        )
    return None


def _default_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The past has another length at every step: a plan of the memory for each serves once.
    options.enable_mem_pattern = False
    return options


def _register(options: ort.SessionOptions, kernel: UseKernel, label: str) -> bool:
    """Register the kernel library if it is wanted; returns whether ``options`` have it."""
    if options in _with_kernel:
        if kernel is False:
            raise InputError(
                f"{label}: kernel=False, but these session options hold the kernel library from"
                " an earlier session; make new ones"
            )
        return True
    if kernel is False or (kernel == "auto" and not kernel_available()):
        return False
    _take_library(options, kernel_library())
    _with_kernel.add(options)
    return True


def _take_library(options: ort.SessionOptions, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except ORT_ERRORS as error:
        raise KernelUnavailableError(
            f"ONNX Runtime does not take the kernel library {library}: {_one_line(error)}"
        ) from error


def read_graph(model: ModelLike) -> tuple[str, ir.Model]:
    """Return what messages call the model, and its graph. Raises `InputError`."""
    if isinstance(model, ir.Model):
        return model.graph.name or "model", model
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model)
    if isinstance(model, bytes):
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(model)
        except Exception as error:
            raise InputError(f"{len(model)} bytes that are no ONNX model: {error}") from error
        return _from_proto(proto)
    return str(model), read_model(Path(model))


def _from_proto(proto: onnx.ModelProto) -> tuple[str, ir.Model]:
    label = proto.graph.name or "model"
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise InputError(
            f"{label}: its weights lie in a file that the message does not locate; give its path"
        )
    try:
        return label, ir.from_proto(proto)
    except Exception as error:
        raise InputError(f"{label}: is malformed: {_one_line(error)}") from error


def _loaded(
    label: str,
    model: ModelLike,
    graph: ir.Model,
    options: ort.SessionOptions,
    providers: list[Any],
) -> ort.InferenceSession:
    if isinstance(model, bytes):
        return _load(label, model, options, providers)
    if isinstance(model, (onnx.ModelProto, ir.Model)):
        return _load_from_memory(label, graph, options, providers)
    return _load(label, str(Path(model)), options, providers)


def _load_from_memory(
    label: str, graph: ir.Model, options: ort.SessionOptions, providers: list[Any]
) -> ort.InferenceSession:
    values = [v for part in graph.graphs() for v in part.initializers.values()]
    tensors = [v.const_value for v in values if v.const_value is not None]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    if not external and sum(tensor.nbytes for tensor in tensors) < MAX_BYTES_IN_MEMORY:
        return _load(label, ir.to_proto(graph).SerializeToString(), options, providers)
    # By way of a file; once loaded, the session needs it no more.
    with tempfile.TemporaryDirectory(prefix="mla_opt_") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(graph, path, external_data="model.onnx.data")
        return _load(label, str(path), options, providers)


def _load(
    label: str, source: str | bytes, options: ort.SessionOptions, providers: list[Any]
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=providers)
    except ORT_ERRORS as error:
        if any(words in str(error) for words in TWICE):
            raise InputError(
                f"{label}: these session options hold the kernel library twice; register it"
                " yourself or let session() do so, not both, and make new options"
            ) from error
        raise InputError(f"{label}: ONNX Runtime does not load it: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
