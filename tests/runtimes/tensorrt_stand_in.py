"""TensorRT and CUDA as far as the runtime uses them: memory is the host's, engines are ONNX files.

An execution reads its inputs from the addresses it was given and writes its outputs to theirs, as
TensorRT does, so a wrong address, shape, order of copies or recorded graph gives wrong tokens.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from mla_opt.engines.manifest import Manifest, Tensor
from mla_opt.ort_values import from_ort_value, to_ort_value
from mla_opt.runtimes.tensorrt.execution import dtype_of


class Cudart:
    """`cuda.bindings.runtime`; copies and launches are queued, and done when waited for."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, room: int = 1 << 30) -> None:
        self.memory: dict[int, Any] = {}
        self.room = room
        self.queue: list[Any] = []
        self.recording: list[Any] | None = None
        self.replays = 0

    def cudaStreamCreate(self):  # noqa: N802
        return 0, self

    def cudaMalloc(self, size):  # noqa: N802
        if size > self.room:
            return 2, 0
        self.room -= size
        buffer = (ctypes.c_char * size)()
        ctypes.memset(buffer, 0xFF, size)  # NaN, where nobody clears
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, address):  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemsetAsync(self, address, value, size, stream):  # noqa: N802
        stream.push(lambda: ctypes.memset(address, value, size))
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        del kind
        stream.push(lambda: ctypes.memmove(target, source, size))
        return (0,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):  # noqa: N802
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):  # noqa: N802
        recorded, self.recording = self.recording, None
        return 0, recorded

    def cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        return 0, tuple(graph)

    def cudaGraphDestroy(self, graph):  # noqa: N802
        return (0,)

    def cudaGraphLaunch(self, recorded, stream):  # noqa: N802
        self.replays += 1
        for work in recorded:
            stream.push(work)
        return (0,)

    def push(self, work: Any) -> None:
        (self.queue if self.recording is None else self.recording).append(work)


class Engine:
    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(str(path), options, providers=providers)
        self.tensors = tensors

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.tensors[name].profile
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self.shapes["past_len"][0]
        _, *rest = self.engine.tensors[name].shape
        return (batch, *(size if isinstance(size, int) else self.query_len for size in rest))

    @property
    def query_len(self) -> int:
        return self.shapes["input_ids"][1]

    def execute_async_v3(self, stream: Any) -> bool:
        shapes = dict(self.shapes)
        stream.push(lambda: self._execute(shapes))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        session = self.engine.session
        inputs = [each.name for each in session.get_inputs()]
        feeds = {name: to_ort_value(self._view(name, shapes[name]).copy()) for name in inputs}
        names = [each.name for each in session.get_outputs()]
        for name, value in zip(names, session.run_with_ort_values(names, feeds)):
            made = from_ort_value(value)
            self._view(name, made.shape)[...] = made

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = dtype_of(self.engine.tensors[name].dtype)
        size = math.prod(shape) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class TensorRTModule:
    """`tensorrt`, whose engines are names of ONNX files in a folder."""

    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased")

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.__version__ = "99.1"
        self.folder, self.manifest = folder, manifest
        self.refused = False
        self.host_code = False

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        return Runtime(self, log)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, module: TensorRTModule, log: Any) -> None:
        self.module, self.log = module, log

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        self.module.host_code = self.engine_host_code_allowed
        if self.module.refused:
            self.log.sink("error", "the engine plan file is not compatible")
            return None
        phase = self.module.manifest.phase(content.decode())  # type: ignore[arg-type]
        tensors = {each.name: each for each in (*phase.inputs, *phase.outputs)}
        return Engine(self.module.folder / phase.onnx[0].name, tensors)
