"""`load`: a folder of engines, checked against its manifest, this TensorRT and this GPU."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mla_opt.engines.build import load_plugin
from mla_opt.engines.cuda_driver import current_device
from mla_opt.engines.manifest import Builder, File, Manifest, PhaseEngine, read_manifest
from mla_opt.engines.tensorrt_library import TensorRT, check_plugins
from mla_opt.engines.tensorrt_library import load as load_tensorrt
from mla_opt.errors import InputError
from mla_opt.files.model_io import read_model
from mla_opt.graphs.interface.decoding import can_pad
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.operator.contract import PLUGIN_VERSION
from mla_opt.options import Phase
from mla_opt.runtimes.shipped import check_code
from mla_opt.runtimes.tensorrt.cuda import Cuda, open_cuda
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import optimized_driver


@dataclass(frozen=True, slots=True)
class EngineDecoder:
    """What the engines take, as their ONNX files tell."""

    label: str
    interface: ModelInterface
    tokens: Port
    past_len: str

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids, if it is known."""
        return self.interface.vocabulary

    @property
    def can_pad(self) -> bool:
        """Whether rows of one batch may differ in length."""
        return can_pad(self.interface)


@dataclass(frozen=True, slots=True)
class Engines:
    """Both engines of a folder, opened.

    Attributes:
        folder: where they lie.
        manifest: what was written down when they were built.
        decoder: what they take.
        opened: the engine of each phase, as TensorRT has it.
        cuda: the device that they run on.
    """

    folder: Path
    manifest: Manifest
    decoder: EngineDecoder
    opened: dict[Phase, Any]
    cuda: Cuda

    def most(self, phase: Phase) -> tuple[int, int]:
        """The most sequences, and the most new tokens, of one call of a phase."""
        inputs = {each.name: each for each in self.manifest.phase(phase).inputs}
        shape = inputs[self.decoder.tokens.name].profile[-1]
        return shape[0], shape[-1]


def load(folder: str | PathLike[str], *, allow_host_code: bool = False) -> Engines:
    """Open the engines of a folder that `mla-opt export` wrote.

    Args:
        folder: the folder.
        allow_host_code: whether a plugin that came with the engines may run, though it was not
            built by this user; it is code.

    Raises:
        InputError: a file is missing or damaged, or the engines are of another TensorRT, another
            GPU, or need a plugin that is not there.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    builder = _builder(folder, manifest)
    trt = load_tensorrt(builder.runtime)
    _check_built_for(folder, builder, trt)
    cuda = open_cuda()
    runtime = trt.module.Runtime(trt.log)
    _plugin(folder, manifest, trt, runtime, allow_host_code)
    decoder = _decoder(folder, manifest)
    # Engines come last: they may be many gigabytes to read and to open.
    contents = {each.phase: _content(folder, each) for each in manifest.phases}
    opened = {phase: _opened(folder, trt, runtime, content) for phase, content in contents.items()}
    return Engines(folder, manifest, decoder, opened, cuda)


def _builder(folder: Path, manifest: Manifest) -> Builder:
    if manifest.builder is None:
        raise InputError(f"{folder}: holds no engines, only ONNX files; export it again")
    return manifest.builder


def _check_built_for(folder: Path, builder: Builder, trt: TensorRT) -> None:
    if trt.version != builder.version:
        raise InputError(
            f"{folder}: was built by version {builder.version}, and {trt.name} is installed; an"
            " engine runs only with the version that built it, so install that, or export again"
        )
    device = current_device()
    if device.compute_capability not in builder.compute_capabilities:
        built = builder.device or ", ".join(f"SM {each}" for each in builder.compute_capabilities)
        raise InputError(
            f"{folder}: was built for {built}, and the GPU is {device.name} (SM"
            f" {device.compute_capability}); export it again for this one"
        )


def _decoder(folder: Path, manifest: Manifest) -> EngineDecoder:
    path = folder / manifest.phase("decode").onnx[0].name
    model = read_model(path)
    driver = optimized_driver(model, InterfaceMap.of(model))
    tokens = driver.interface.token_ids
    if tokens is None:
        raise InputError(f"{path}: has no input for token ids, so it cannot generate")
    return EngineDecoder(str(folder), driver.interface, tokens, manifest.past_len)


def _content(folder: Path, phase: PhaseEngine) -> bytes:
    if phase.engine is None:
        raise InputError(f"{folder}: has no engine for {phase.phase}; export it again")
    return _checked(folder, phase.engine)


def _checked(folder: Path, file: File) -> bytes:
    path = folder / file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise InputError(f"{path}: is not the file that the manifest tells of; export it again")
    return content


def _plugin(
    folder: Path, manifest: Manifest, trt: TensorRT, runtime: Any, allow_host_code: bool
) -> None:
    if manifest.plugin is None:
        return
    if manifest.plugin.version != PLUGIN_VERSION:
        raise InputError(
            f"{folder}: its decode engine calls version {manifest.plugin.version} of the plugin,"
            f" this release has {PLUGIN_VERSION}; export it again"
        )
    check_plugins(trt)
    if manifest.plugin.library is not None:
        library = manifest.plugin.library
        load_plugin(trt, check_code(folder, library, allow_host_code=allow_host_code))
        return
    if not allow_host_code:
        raise InputError(
            f"{folder}: the engine carries its plugin, which is code; allow_host_code=True lets it"
            " run, if you trust where the engine comes from"
        )
    runtime.engine_host_code_allowed = True


def _opened(folder: Path, trt: TensorRT, runtime: Any, content: bytes) -> Any:
    errors: list[str] = []
    trt.log.sink = lambda kind, text: errors.append(text) if kind == "error" else None
    try:
        engine = runtime.deserialize_cuda_engine(content)
    finally:
        trt.log.sink = None
    if engine is None:
        reason = " ".join((errors or ["no reason given"])[0].split())[:400]
        raise InputError(f"{folder}: {trt.name} does not open an engine of it: {reason}")
    return engine
