"""The configuration of a model for the Triton Inference Server, made of the server's own messages.

The message classes come from the package tritonclient. What each field does is documented by the
server: `model_operations` loads operators for ONNX Runtime, and for it alone; plugins of TensorRT
are loaded by an option of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_opt.engines.manifest import Cache, Tensor
from mla_opt.errors import InputError

IMAGE = "nvcr.io/nvidia/tritonserver:26.08-py3"
"""The server that the configuration was written for."""
IMAGE_ONNXRUNTIME = "1.28.0"
"""The ONNX Runtime in it, by the server's table of releases."""
IDLE_SECONDS = 600
"""How long a sequence may wait for its next request; the server's own default is one second."""
TYPES = {
    "bool": "TYPE_BOOL",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server is to run a model.

    Attributes:
        server_path: where the server sees the repository; libraries are loaded by this path.
        instances: how many sequences are served at once; others wait until one ends.
    """

    server_path: str = "/models"
    instances: int = 1

    def __post_init__(self) -> None:
        odd = set(self.server_path) & set(',;"')
        if not self.server_path.startswith("/") or odd:
            raise InputError(
                f"--server-path {self.server_path!r}: must be the full path of the repository on"
                " the server, such as /models, without commas, semicolons and quotes"
            )
        if self.instances < 1:
            raise InputError(f"--instances {self.instances}: must be 1 or more")

    def path(self, *parts: str) -> str:
        """A path in the repository, as the server sees it."""
        return "/".join((self.server_path.rstrip("/"), *parts))


@dataclass(frozen=True, slots=True)
class Served:
    """One model to serve.

    Attributes:
        backend: the server's backend for it.
        files: what to copy, by the name it has there.
        inputs: all of them, those of the caches included.
        outputs: likewise.
        caches: the buffers that the server keeps.
        library: the kernels or the plugin that the server must load.
        built_with: what an engine was built with; it runs with nothing else.
    """

    backend: str
    files: tuple[tuple[Path, str], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    caches: tuple[Cache, ...]
    library: Path | None = None
    built_with: str = ""

    @property
    def fed(self) -> tuple[Tensor, ...]:
        """The inputs that a request brings."""
        kept = {each.input for each in self.caches}
        return tuple(each for each in self.inputs if each.name not in kept)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.backend == "tensorrt"


def config_text(messages: Any, name: str, served: Served, serving: Serving) -> str:
    """The configuration, as protobuf writes it as text.

    Raises:
        InputError: an input has a type that the server does not know.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    config = messages.ModelConfig(name=name, backend=served.backend, max_batch_size=0)
    group = messages.ModelInstanceGroup
    kind = group.KIND_GPU if served.on_gpu else group.KIND_CPU
    config.instance_group.add(count=serving.instances, kind=kind)
    if served.library is not None and served.backend == "onnxruntime":
        path = serving.path(name, served.library.name)
        config.model_operations.op_library_filename.append(path)
    given = {each.output for each in served.caches}
    for tensor in served.fed:
        config.input.add(**_port(messages, tensor))
    for tensor in served.outputs:
        if tensor.name not in given:
            config.output.add(**_port(messages, tensor))
    for cache in served.caches:
        _add_state(messages, config.sequence_batching, cache)
    config.sequence_batching.max_sequence_idle_microseconds = IDLE_SECONDS * 1_000_000
    config.sequence_batching.direct.SetInParent()
    return f"# Written for {IMAGE}; README.md tells more.\n{text_format.MessageToString(config)}"


def _port(messages: Any, tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": _type(messages, tensor.name, tensor.dtype),
        "dims": dims_of(tensor.shape),
    }


def dims_of(shape: Sequence[int | str | None]) -> list[int]:
    """A shape as the server writes it, -1 for what is free."""
    return [size if isinstance(size, int) else -1 for size in shape]


def _type(messages: Any, name: str, dtype: str) -> Any:
    if dtype not in TYPES:
        raise InputError(f"{name!r} is {dtype}, which the server has no type for")
    return messages.DataType.Value(TYPES[dtype])


def _add_state(messages: Any, batching: Any, cache: Cache) -> None:
    """A buffer of one sequence: zeros first, because rows that are not valid must be finite."""
    kind, shape = _type(messages, cache.input, cache.dtype), [1, cache.rows, cache.width]
    state = batching.state.add(
        input_name=cache.input,
        output_name=cache.output,
        data_type=kind,
        dims=[-1, *shape],
        use_same_buffer_for_input_output=True,
    )
    state.initial_state.add(
        name=f"zeros for {cache.input}", data_type=kind, dims=[1, *shape], zero_data=True
    )


def load_messages() -> Any:
    """The server's message classes. Raises `InputError` where tritonclient is not installed."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise InputError(
            f"the server's message classes cannot be imported ({error}): pip install"
            " 'tritonclient[grpc]'"
        ) from error
    return model_config_pb2
