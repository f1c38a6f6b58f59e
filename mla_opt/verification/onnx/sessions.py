"""Models as ONNX Runtime takes them: a path, or a graph in memory with its weights on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from mla_opt.errors import InputError, require_memory
from mla_opt.files.model_io import check_order, from_proto, read_model
from mla_opt.files.room import require_room
from mla_opt.graphs.onnx.widening import uses_bfloat16
from mla_opt.ort_values import from_ort_value, to_ort_value
from mla_opt.verification.breakable import Breakable
from mla_opt.verification.onnx.breaking import BreakableOnnx
from mla_opt.verification.onnx.exact_rows import with_exact_rows
from mla_opt.verification.onnx.same_weights import with_weights_of
from mla_opt.verification.onnx.twins import ACCURACY_OF_FUSED, float_twin, may_be_fused
from mla_opt.verification.running import RunError, Runnable

Array = npt.NDArray[Any]
ModelLike = str | PathLike[str] | onnx.ModelProto | ir.Model
T = TypeVar("T")

#: Weights above this go to a file: one protobuf message holds less than 2 GiB.
MAX_BYTES_IN_MEMORY = 1 << 30
#: Tensors of as many bytes are given beside a message that would be too large.
LARGE = 1 << 16
#: What a message says of where these lie.
GIVEN = "given_beside_the_message"
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"

#: Everything ONNX Runtime raises; it has no base class of its own.
ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(ort_errors).values() if isinstance(e, type) and issubclass(e, Exception)),
)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model to look into and to run.

    Attributes:
        label: how messages call it.
        model: its graph; weights stay where they are until they are asked for.
        path: the file, if it came from one and is unchanged.
        libraries: custom-operator libraries to register.
        settings: what sessions are configured with, beyond the defaults.
    """

    label: str
    model: ir.Model
    path: Path | None = None
    libraries: Sequence[Path] = field(default_factory=tuple)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def narrow(self) -> bool:
        """Whether it computes in bfloat16."""
        return uses_bfloat16(self.model)

    def twin(self, wide: bool = False, rows: bool = False) -> OpenModel:
        """The model with its activations in floating point; itself where nothing rounds them.

        ``rows``: latent rows that are kept in codes are floats, too.
        """
        model = float_twin(with_exact_rows(self.model) if rows else self.model, wide=wide)
        if model is not self.model:
            return replace(self, model=model, path=None, settings=dict([ACCURACY_OF_FUSED]))
        if may_be_fused(model):
            return replace(self, settings=dict([ACCURACY_OF_FUSED]))
        return self

    def with_weights_of(self, other: Runnable) -> tuple[OpenModel, int]:
        """The model with the layers that are quantized in the other, and how many those are."""
        model, count = with_weights_of(self.model, other.model)
        if not count:
            return self, 0
        settings = dict([ACCURACY_OF_FUSED])
        return replace(self, model=model, path=None, settings=settings), count

    def breakable(self) -> BreakableOnnx:
        """The model, to be copied and broken."""
        return BreakableOnnx(self.model)

    def broken(self, label: str, model: Breakable) -> OpenModel:
        """A broken copy, to be run."""
        assert isinstance(model, BreakableOnnx)
        return replace(self, label=label, model=model.model, path=None)

    def session(self, optimized: bool = True) -> Session:
        """Load it on the CPU, with or without ONNX Runtime's own graph optimizations."""
        require_room(sum(t.nbytes for t in _weights(self.model)), f"the {self.label} model")
        level = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # What one call needs is given back before the next: the arena keeps it, in powers of two.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # Runs are many and short: threads that wait by spinning take the processor from others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        )
        for name, value in self.settings.items():
            options.add_session_config_entry(name, value)
        for library in self.libraries:
            _guarded(self.label, "load", options.register_custom_ops_library, str(library))
        if self.path is not None:
            return Session(self.label, _load(self.label, str(self.path), options))
        return self._load_from_memory(options)

    def _load_from_memory(self, options: ort.SessionOptions) -> Session:
        tensors = _weights(self.model)
        folders = {str(t.base_dir) for t in tensors if isinstance(t, ir.ExternalTensor)}
        own = sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))
        if own > MAX_BYTES_IN_MEMORY or len(folders) > 1:
            return self._load_beside(options)
        for folder in folders:
            options.add_session_config_entry(EXTERNAL_FOLDER, folder)
        proto = ir.to_proto(self.model).SerializeToString()
        return Session(self.label, _load(self.label, proto, options))

    def _load_beside(self, options: ort.SessionOptions) -> Session:
        """Give the large tensors beside the message, which has no room for them."""
        model = self.model.clone()
        given = {v.name or "": v for v in model.graph.initializers.values() if _is_large(v)}
        arrays = {name: value.const_value.numpy() for name, value in given.items()}  # type: ignore[union-attr]
        for value in given.values():
            value.const_value = _elsewhere(value)
        rest = _weights(model)
        inside = sum(t.nbytes for t in rest if not isinstance(t, ir.ExternalTensor))
        if inside > MAX_BYTES_IN_MEMORY or any(_lies_in_file(tensor) for tensor in rest):
            return Session(self.label, self._load_from_copy(options))
        kept = {name: to_ort_value(array) for name, array in arrays.items()}
        options.add_external_initializers(list(kept), list(kept.values()))
        proto = ir.to_proto(model).SerializeToString()
        return Session(self.label, _load(self.label, proto, options), (arrays, kept))

    def _load_from_copy(self, options: ort.SessionOptions) -> ort.InferenceSession:
        """Load by way of a file; once loaded, the session needs it no more."""
        with tempfile.TemporaryDirectory(prefix="mla_opt_") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(self.model, path, external_data="model.onnx.data")
            return _load(self.label, str(path), options)


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded model, and what has to live as long as it."""

    label: str
    native: ort.InferenceSession
    kept: object = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises `RunError`."""
        names = [output.name for output in self.native.get_outputs()]
        tensors = {name: to_ort_value(feed) for name, feed in feeds.items()}
        values = _guarded(self.label, "run", self.native.run_with_ort_values, names, tensors)
        return {name: _own(from_ort_value(value), feeds) for name, value in zip(names, values)}


def open_model(model: ModelLike, label: str, libraries: Sequence[Path] = ()) -> OpenModel:
    """Open a path, a proto or a graph. Raises `InputError` where it is no model."""
    opened = _opened(model, label)
    if not opened.model.graph.outputs:
        raise InputError(f"the {label} model has no outputs")
    return replace(opened, libraries=libraries)


def _opened(model: ModelLike, label: str) -> OpenModel:
    if isinstance(model, ir.Model):
        check_order(model)
        return OpenModel(label, model)
    if isinstance(model, onnx.ModelProto):
        return OpenModel(label, _from_proto(model, label))
    path = Path(model)
    return OpenModel(label, read_model(path), path)


def _from_proto(proto: onnx.ModelProto, label: str) -> ir.Model:
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        raise InputError(
            f"the weights of the {label} model lie in a file that the message does not locate;"
            " pass its path instead"
        )
    try:
        return from_proto(proto)
    except InputError as error:
        raise InputError(f"the {label} model {error}") from error


def _own(output: Array, feeds: Mapping[str, Array]) -> Array:
    """An output in memory of its own: where a model returns an input, it is that of the feed."""
    shared = any(np.may_share_memory(output, feed) for feed in feeds.values())
    return output.copy() if shared else output


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    values = [v for graph in model.graphs() for v in graph.initializers.values()]
    return [v.const_value for v in values if v.const_value is not None]


def _is_large(value: ir.Value) -> bool:
    """Whether a stored tensor is worth giving beside the message, and can be."""
    tensor = value.const_value
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return False
    return bool(tensor.nbytes >= LARGE)


def _elsewhere(value: ir.Value) -> ir.ExternalTensor:
    """A stand-in for a tensor that is given beside the message."""
    tensor = value.const_value
    assert tensor is not None
    shape, name = ir.Shape(tensor.shape.numpy()), value.name or ""
    return ir.ExternalTensor(
        GIVEN, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=""
    )


def _lies_in_file(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and str(tensor.location) != GIVEN


def _load(label: str, source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    def load() -> ort.InferenceSession:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return _guarded(label, "load", load)


def _guarded(label: str, verb: str, action: Callable[..., T], *arguments: object) -> T:
    """Run ``action``, turning ONNX Runtime's many errors into one of ours."""
    try:
        return action(*arguments)
    except ORT_ERRORS as error:
        require_memory(error)
        reason = " ".join(str(error).split())[:400]
        raise RunError(f"ONNX Runtime does not {verb} the {label} model: {reason}") from error
