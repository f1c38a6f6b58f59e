"""A Triton Inference Server model repository for one exported engine, or one optimized ONNX file.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/model.plan, or model.onnx and its data
    REPOSITORY/NAME/README.md, and the plugin of an engine that needs one beside it

The server keeps the latent caches: they are implicit state of a sequence, zeros at its start, and
one buffer serves as input and output. One model serves prompts and steps, as two models share no
state: of engines it is the decode engine, whose ``--step`` must then reach as far as prompts do.
The configuration is made with the server's own message classes, from the package tritonclient.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_opt.engines.manifest import Cache, Manifest, Tensor, read_manifest
from mla_opt.errors import InputError
from mla_opt.files.model_io import check_replaced, model_files, read_model
from mla_opt.verification.interface_map import InterfaceMap

TYPES = {
    "bool": "TYPE_BOOL",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}


@dataclass(frozen=True, slots=True)
class Served:
    """One model to serve.

    Attributes:
        backend: the server's backend for it.
        files: what to copy, by the name it has there.
        inputs: all of them, those of the caches included.
        outputs: likewise.
        caches: the buffers that the server keeps.
        plugin: the plugin library that the server must load.
    """

    backend: str
    files: tuple[tuple[Path, str], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    caches: tuple[Cache, ...]
    plugin: Path | None = None


def export_repository(source: Path, repository: Path, name: str, *, force: bool = False) -> Path:
    """Write the repository of an exported folder, or of an optimized ONNX file.

    Returns the folder of the model.

    Raises:
        InputError: the source cannot be served, the folder is there, or tritonclient is not.
    """
    messages = _messages()
    if not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise InputError(f"{name!r} is no name for a model: letters, digits, '.', '-' and '_'")
    folder = repository / name
    if folder.exists() and not force:
        raise InputError(f"{folder}: is there already; give another folder or name, or --force")
    served = of_folder(source) if source.is_dir() else of_model(source)
    check_replaced(folder, [source, *(path for path, _ in served.files)])
    text = config_text(messages, name, served)
    temporary = repository / f".{name}.{secrets.token_hex(4)}"
    try:
        (temporary / "1").mkdir(parents=True)
        (temporary / "config.pbtxt").write_text(text, encoding="utf-8")
        for path, target in served.files:
            shutil.copyfile(path, temporary / "1" / target)
        if served.plugin is not None:
            shutil.copyfile(served.plugin, temporary / served.plugin.name)
        (temporary / "README.md").write_text(_readme(name, served), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def of_folder(folder: Path) -> Served:
    """What to serve of an exported folder.

    Raises:
        InputError: there is no engine, or not one that the server loads.
    """
    manifest = read_manifest(folder)
    decode = manifest.phase("decode")
    if decode.engine is None or manifest.builder is None:
        raise InputError(f"{folder}: holds no engines; export it again without --onnx-only")
    if manifest.builder.runtime != "tensorrt":
        raise InputError(
            f"{folder}: its engines are of TensorRT-RTX, which the server has no backend for;"
            " export it with --runtime tensorrt"
        )
    return Served(
        backend="tensorrt",
        files=((folder / decode.engine.name, "model.plan"),),
        inputs=decode.inputs,
        outputs=decode.outputs,
        caches=manifest.caches,
        plugin=_plugin(folder, manifest),
    )


def _plugin(folder: Path, manifest: Manifest) -> Path | None:
    library = None if manifest.plugin is None else manifest.plugin.library
    return None if library is None else folder / library.name


def of_model(path: Path) -> Served:
    """What to serve of an optimized ONNX file.

    Raises:
        InputError: its caches are no buffers of a fixed size.
    """
    model = read_model(path)
    changes = InterfaceMap.of(model)
    if changes.past_len_input is None or changes.capacity is None or changes.prompts_only:
        raise InputError(
            f"{path}: the server keeps buffers of a fixed size; make some with"
            " `mla-opt optimize --cache static:ROWS`, or give a folder that `mla-opt export` wrote"
        )
    inputs = tuple(_tensor(value) for value in model.graph.inputs)
    by_name = {each.name: each for each in inputs}
    caches = tuple(
        Cache(
            past,
            present,
            by_name[past].dtype,
            changes.capacity,
            state.kv_lora_rank + state.qk_rope_head_dim,
        )
        for state in changes.states
        for past, present in zip(state.optimized.inputs, state.optimized.outputs)
    )
    first, *others = model_files(path, model)
    files = ((first, "model.onnx"), *((each, each.name) for each in others))
    outputs = tuple(_tensor(value) for value in model.graph.outputs)
    return Served("onnxruntime", files, inputs, outputs, caches)


def _tensor(value: Any) -> Tensor:
    dims = () if value.shape is None else tuple(value.shape)
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
    return Tensor(value.name, str(value.dtype.numpy().name), shape)


def config_text(messages: Any, name: str, served: Served) -> str:
    """The configuration, as protobuf writes it as text.

    Raises:
        InputError: an input has a type that the server does not know.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    config = messages.ModelConfig(name=name, backend=served.backend, max_batch_size=0)
    kept = {each.input for each in served.caches}
    given = {each.output for each in served.caches}
    for tensor in served.inputs:
        if tensor.name not in kept:
            config.input.add(**_port(messages, tensor))
    for tensor in served.outputs:
        if tensor.name not in given:
            config.output.add(**_port(messages, tensor))
    for cache in served.caches:
        _add_state(messages, config.sequence_batching, cache)
    config.sequence_batching.direct.SetInParent()
    return str(text_format.MessageToString(config))


def _port(messages: Any, tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": _type(messages, tensor.name, tensor.dtype),
        "dims": _dims(tensor.shape),
    }


def _dims(shape: Sequence[int | str | None]) -> list[int]:
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


def _messages() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise InputError(
            f"the server's message classes cannot be imported ({error}): pip install"
            " 'tritonclient[grpc]'"
        ) from error
    return model_config_pb2


def _readme(name: str, served: Served) -> str:
    fed = [each for each in served.inputs if each.name not in {c.input for c in served.caches}]
    plugin = ""
    if served.plugin is not None:
        plugin = (
            "\nThe engine needs the plugin beside this file. The server loads it if started with\n"
            f"`--backend-config=tensorrt,plugins=/path/to/{name}/{served.plugin.name}`.\n"
        )
    lines = "\n".join(f"- `{each.name}` {each.dtype} {_dims(each.shape)}" for each in fed)
    return f"""# {name}

Written by mla-opt. The configuration was made with the server's own message classes; it has not
been loaded by a server.

    tritonserver --model-repository=/path/to/the/folder/above
{plugin}
Every request belongs to a sequence (a correlation id; `sequence_start` with the prompt,
`sequence_end` with the last step). The server keeps the caches of {len(served.caches)} layers; a
request brings, for one sequence:

{lines}

`past_len` is the number of tokens that the sequence has had before; an attention mask covers those
and the new ones, at most {served.caches[0].rows} in all.
"""
