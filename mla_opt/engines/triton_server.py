"""A Triton Inference Server model repository for one exported engine, or one optimized ONNX file.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/model.plan, or model.onnx and its data
    REPOSITORY/NAME/README.md, and the library of kernels or the plugin

The server keeps the latent caches: they are implicit state of a sequence, zeros at its start. One
model serves prompts and steps, as two models share no state: of engines it is the decode engine,
whose ``--step`` must then reach as far as prompts do.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mla_opt.engines.manifest import Cache, Manifest, PhaseEngine, Tensor, read_manifest
from mla_opt.engines.triton_config import Served, Serving, config_text, load_messages
from mla_opt.engines.triton_readme import readme_text
from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.files.model_io import check_replaced, model_files, read_model
from mla_opt.kernels.library import kernel_library
from mla_opt.operator.contract import DOMAIN
from mla_opt.verification.interface_map import InterfaceMap


def export_repository(
    source: Path,
    repository: Path,
    name: str,
    serving: Serving | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write the repository of an exported folder, or of an optimized ONNX file.

    Returns the folder of the model.

    Raises:
        InputError: the source cannot be served, the folder is there, or tritonclient is not.
    """
    messages, serving = load_messages(), serving or Serving()
    if not name or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise InputError(f"{name!r} is no name for a model: letters, digits, '.', '-' and '_'")
    folder = repository / name
    if folder.exists() and not force:
        raise InputError(f"{folder}: is there already; give another folder or name, or --force")
    served = of_folder(source) if source.is_dir() else of_model(source)
    check_replaced(folder, [source, *(path for path, _ in served.files)])
    text = config_text(messages, name, served, serving)
    temporary = repository / f".{name}.{secrets.token_hex(4)}"
    try:
        (temporary / "1").mkdir(parents=True)
        (temporary / "config.pbtxt").write_text(text, encoding="utf-8")
        for path, target in served.files:
            shutil.copyfile(path, temporary / "1" / target)
        if served.library is not None:
            shutil.copyfile(served.library, temporary / served.library.name)
        readme = readme_text(name, served, serving)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
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
        InputError: there is no engine, or not one that the server loads and runs.
    """
    manifest = read_manifest(folder)
    decode = manifest.phase("decode")
    if decode.engine is None or manifest.builder is None:
        raise InputError(
            f"{folder}: holds ONNX files and no engines (--onnx-only), and the server's TensorRT"
            " backend loads engines only. Export it again without --onnx-only where the server's"
            " GPU and TensorRT are; or serve the model by ONNX Runtime: give the file that"
            " `mla-opt optimize MODEL --cache static:ROWS` writes"
        )
    if manifest.builder.runtime != "tensorrt":
        raise InputError(
            f"{folder}: its engines are of TensorRT-RTX, which the server has no backend for;"
            " export it again with --runtime tensorrt, on a machine with the server's GPU"
        )
    _check_decode(folder, decode)
    return Served(
        backend="tensorrt",
        files=((folder / decode.engine.name, "model.plan"),),
        inputs=decode.inputs,
        outputs=decode.outputs,
        caches=manifest.caches,
        library=_plugin(folder, manifest),
        built_with=f"TensorRT {manifest.builder.version}",
    )


def _check_decode(folder: Path, decode: PhaseEngine) -> None:
    """Raise `InputError` for an engine that would compute something else on the server."""
    in_place = [each.name for each in decode.attentions if each.lowered == "operators"]
    if in_place:
        raise InputError(
            f"{folder}: the decode engine writes the cache of {in_place[0]} by TensorRT's own"
            " KVCacheUpdate, whose output must lie at the address of its input. The server's"
            " TensorRT backend gives each a buffer of its own, so answers would be wrong. Only"
            " attention that the plugin runs can be served: export without --no-plugin, or serve"
            " the model by ONNX Runtime (give the file that `mla-opt optimize MODEL --cache"
            " static:ROWS` writes)"
        )
    least = {each.name: each.profile[0][0] for each in decode.inputs if each.profile}
    name, batch = max(least.items(), key=lambda item: item[1])
    if batch > 1:
        raise InputError(
            f"{folder}: the decode engine takes no fewer than {batch} sequences a call ({name}),"
            " and the server calls it with one; export it again with --batch 1"
        )


def _plugin(folder: Path, manifest: Manifest) -> Path | None:
    library = None if manifest.plugin is None else manifest.plugin.library
    return None if library is None else folder / library.name


def of_model(path: Path) -> Served:
    """What to serve of an optimized ONNX file.

    Raises:
        InputError: its caches are no buffers of a fixed size, it has tensors of a type that the
            server's ONNX Runtime backend has not, or the library of kernels was not built.
    """
    model = read_model(path)
    changes = InterfaceMap.of(model)
    if changes.has_buffers and changes.past_len_input is None:
        raise InputError(
            f"{path}: the server counts the rows of buffers in past_len, and the model by inputs of"
            " its own"
        )
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
    _check_types(path, inputs)
    first, *others = model_files(path, model)
    files = ((first, "model.onnx"), *((each, each.name) for each in others))
    outputs = tuple(_tensor(value) for value in model.graph.outputs)
    library = _kernels(path, model)
    return Served("onnxruntime", files, inputs, outputs, caches, library)


def _check_types(path: Path, inputs: tuple[Tensor, ...]) -> None:
    for each in inputs:
        if each.dtype == "bfloat16":
            raise InputError(
                f"{path}: input {each.name!r} is bfloat16, which the server's ONNX Runtime backend"
                " does not take; optimize the model without --cache-type bfloat16, int8, fp8, from"
                " float32 or float16"
            )


def _kernels(path: Path, model: ir.Model) -> Path | None:
    """The library with the kernels of the model's operators, if it has any."""
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        return None
    try:
        return kernel_library()
    except KernelUnavailableError as error:
        raise InputError(
            f"{path}: its operators need kernels on the server, and {error}; or optimize the model"
            " again with --target portable, which needs none and is slower"
        ) from error


def _tensor(value: Any) -> Tensor:
    dims = () if value.shape is None else tuple(value.shape)
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
    return Tensor(value.name, str(value.dtype.numpy().name), shape)
