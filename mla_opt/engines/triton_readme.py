"""The README.md of a model in a repository of the Triton Inference Server."""

from __future__ import annotations

from mla_opt.engines.manifest import Tensor
from mla_opt.engines.triton_config import (
    IDLE_SECONDS,
    IMAGE,
    IMAGE_ONNXRUNTIME,
    Served,
    Serving,
    dims_of,
)


def readme_text(name: str, served: Served, serving: Serving) -> str:
    """What someone who runs the server, or calls it, has to know."""
    fed = "\n".join(map(_line, served.fed))
    count = serving.instances
    at_once = "One sequence is" if count == 1 else f"{count} sequences are"
    return f"""# {name}

Written by mla-opt for the Triton Inference Server, image `{IMAGE}`.
The configuration was made with the server's own message classes. It has not been loaded by a
server yet.

    docker run --rm{" --gpus all" if served.on_gpu else ""} -p 8000:8000 -p 8001:8001 \\
        -v /path/to/this/repository:{serving.server_path} {IMAGE} \\
        {_command(name, served, serving)}

The repository must be at `{serving.server_path}` on the server. To put it elsewhere, make it again
with `--server-path`.

{_library(name, served, serving)}
Every request belongs to a sequence: give it a correlation id, `sequence_start` with the prompt and
`sequence_end` with the last step. The server keeps its caches ({len(served.caches)}). A request
brings, for one sequence:

{fed}

`past_len` is the number of tokens that the sequence has had before. An attention mask covers those
and the new ones, at most {served.caches[0].rows} in all.

{at_once} served at once (`instance_group`, `--instances`).
Others wait until one ends. A sequence that gets no request for {IDLE_SECONDS} seconds is ended
(`max_sequence_idle_microseconds` in `config.pbtxt`). The server copies the whole caches of a
sequence in every request: a step costs more with more rows, however few of them are in use.
"""


def _line(tensor: Tensor) -> str:
    most = f", at most {list(tensor.profile[-1])}" if tensor.profile else ""
    return f"- `{tensor.name}` {tensor.dtype} {dims_of(tensor.shape)}{most}"


def _command(name: str, served: Served, serving: Serving) -> str:
    command = f"tritonserver --model-repository={serving.server_path}"
    if not served.on_gpu:
        return command
    if served.library is None:
        return f"{command} --backend-config=tensorrt,version-compatible=true"
    path = serving.path(name, served.library.name)
    return f"{command} --backend-config=tensorrt,plugins={path}"


def _library(name: str, served: Served, serving: Serving) -> str:
    """What is told of the library, and of the versions that it and the model need."""
    if not served.on_gpu:
        if served.library is None:
            return "The model has standard operators only and needs no library.\n"
        return f"""`config.pbtxt` loads `{serving.path(name, served.library.name)}`
(`model_operations`), the kernels of the model's operators for the CPU. The image has ONNX Runtime
{IMAGE_ONNXRUNTIME}. The library was compiled on the machine that wrote this; the server's must
have the same CPU architecture, and a glibc that is at least as new.
"""
    engine = f"""The engine was built with {served.built_with}. A server with another TensorRT, or
another GPU, refuses it: choose the image by the table of releases in the server's documentation,
or build the engine with the TensorRT of the image.
"""
    if served.library is None:
        return f"""{engine}
The engine carries its plugin, which is code: the option `version-compatible` lets the server run
code that engines carry. It is for all engines of the server.
"""
    return f"""{engine}
The engine needs the plugin beside this file, which the option `plugins` of the server loads.
`config.pbtxt` cannot do that for TensorRT.
"""
