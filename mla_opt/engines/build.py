"""Builds one engine from one ONNX file, and makes sure that it is what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mla_opt.engines.layers import Layer, read_layers
from mla_opt.engines.profiles import Shapes
from mla_opt.engines.tensorrt_library import TensorRT
from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE, PLUGIN_NAMESPACE, PLUGIN_VERSION

Progress = Callable[[str, int, int], None]
"""Told a phase of the build, and how many steps of how many are done."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build.

    Attributes:
        onnx: the model, its weights beside it.
        profile: shapes of every input, by name.
        operators: names of the nodes that must become the plugin.
        plugin: the plugin library, if there are any.
        embed: whether the engine is to carry it.
        compute_capabilities: to build for, as numbers such as 89; none for the GPU that is there.
        timing_cache: what is read, and written anew, to build faster.
    """

    onnx: Path
    profile: Mapping[str, Shapes]
    operators: Sequence[str] = ()
    plugin: Path | None = None
    embed: bool = False
    compute_capabilities: Sequence[int] = ()
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialized engine, and what is in it."""

    content: bytes
    layers: tuple[Layer, ...]


@dataclass(slots=True)
class _Lines:
    """The log of one build."""

    all: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take(self, severity: str, text: str) -> None:
        self.all.append(text)
        if severity == "error":
            self.errors.append(text)

    def reason(self) -> str:
        """The first error, in one line."""
        return " ".join((self.errors or ["no reason given"])[0].split())[:500]


def build(trt: TensorRT, plan: Plan, progress: Progress | None = None) -> Engine:
    """Build an engine.

    Raises:
        InputError: TensorRT does not take the model, or not as asked for; the message says why.
    """
    with _logged(trt) as lines:
        if plan.plugin is not None:
            load_plugin(trt, plan.plugin)
        builder = trt.module.Builder(trt.log)
        network = builder.create_network(_network_flags(trt))
        _parse(trt, network, plan, lines)
        _check_operators(trt, network, plan)
        config = _configure(trt, builder, network, plan, progress)
        content = builder.build_serialized_network(network, config)
        if content is None:
            raise InputError(f"{plan.onnx}: {trt.name} cannot build it: {lines.reason()}")
        _keep_timing_cache(config, plan)
        return Engine(bytes(content), read_layers(lines.all))


def load_plugin(trt: TensorRT, library: Path) -> None:
    """Register the plugin of a library, once.

    Raises:
        InputError: the library has no plugin of this name and version.
    """
    registry = trt.module.get_plugin_registry()
    if PLUGIN_VERSION in _versions(registry):
        return
    try:
        registry.load_library(str(library))
    except Exception as error:
        raise InputError(f"{library}: {trt.name} does not load it: {error}") from error
    found = _versions(registry)
    if PLUGIN_VERSION not in found:
        has = f"has version {', '.join(sorted(found))}" if found else "has no such plugin"
        raise InputError(
            f"{library}: {has}; the model needs {PLUGIN_NAMESPACE}::{OP_TYPE} version"
            f" {PLUGIN_VERSION}; build it with this release (mla-opt build-kernels)"
        )


def _versions(registry: Any) -> set[str]:
    """Versions of the plugin that are registered."""
    creators = registry.all_creators_recursive
    return {
        str(each.plugin_version)
        for each in creators
        if (each.name, each.plugin_namespace) == (OP_TYPE, PLUGIN_NAMESPACE)
    }


@contextmanager
def _logged(trt: TensorRT) -> Iterator[_Lines]:
    lines, before = _Lines(), trt.log.sink
    trt.log.sink = lines.take
    try:
        yield lines
    finally:
        trt.log.sink = before


def _network_flags(trt: TensorRT) -> int:
    """Types are as written, wherever networks can be anything else."""
    flag = getattr(trt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: TensorRT, network: Any, plan: Plan, lines: _Lines) -> None:
    parser = trt.module.OnnxParser(network, trt.log)
    if parser.parse_from_file(str(plan.onnx)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = "; ".join(f"{each.node_name()}: {each.desc()}" for each in errors[:3])
    reason = " ".join((told or lines.reason()).split())[:500]
    raise InputError(f"{plan.onnx}: {trt.name} does not parse it: {reason}")


def _check_operators(trt: TensorRT, network: Any, plan: Plan) -> None:
    """The parser falls back to the function body without a word; a plugin asked for must be there.

    Raises:
        InputError: an operator became something else.
    """
    plugin = trt.module.LayerType.PLUGIN_V3
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    there = {layer.name for layer in layers if layer.type == plugin}
    missing = [name for name in plan.operators if name not in there]
    if missing:
        raise InputError(
            f"{plan.onnx}: {trt.name} put the function body in the place of {len(missing)} of"
            f" {len(plan.operators)} operators, the first {missing[0]!r}, though the plugin was"
            " asked for"
        )


def _configure(
    trt: TensorRT, builder: Any, network: Any, plan: Plan, progress: Progress | None
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.module.ProfilingVerbosity.DETAILED
    if plan.compute_capabilities:
        _set_capabilities(trt, config, plan.compute_capabilities)
    if plan.operators:
        config.set_preview_feature(trt.module.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if plan.embed:
            config.plugins_to_serialize = [str(plan.plugin)]
    config.add_optimization_profile(_profile(builder, network, plan))
    if plan.timing_cache is not None:
        config.set_timing_cache(_timing_cache(config, plan.timing_cache), False)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    return config


def _profile(builder: Any, network: Any, plan: Plan) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in plan.profile:
            raise InputError(f"{plan.onnx}: nothing says what shapes input {tensor.name!r} has")
        if tensor.is_shape_tensor:
            raise InputError(
                f"{plan.onnx}: the data of input {tensor.name!r} decide the shape of something;"
                " TensorRT would have to read them on the host"
            )
        profile.set_shape(tensor.name, *plan.profile[tensor.name])
    return profile


def _set_capabilities(trt: TensorRT, config: Any, numbers: Sequence[int]) -> None:
    known = trt.module.ComputeCapability.__members__
    config.num_compute_capabilities = len(numbers)
    for index, number in enumerate(numbers):
        config.set_compute_capability(known[f"SM{number}"], index)


def check_capabilities(trt: TensorRT, numbers: Sequence[int]) -> None:
    """Raise `InputError` for a compute capability that this TensorRT cannot build for."""
    kinds = getattr(trt.module, "ComputeCapability", None)
    if kinds is None:
        raise InputError(f"{trt.name} builds for the GPU that is there; --sm is for --runtime rtx")
    known = [name[2:] for name in kinds.__members__ if name.startswith("SM")]
    unknown = [str(number) for number in numbers if str(number) not in known]
    if unknown:
        raise InputError(
            f"{trt.name} builds for no SM {', '.join(unknown)}, only for {', '.join(known)}"
        )


def _timing_cache(config: Any, path: Path) -> Any:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None:
        raise InputError(f"{path}: is no timing cache of this TensorRT; give another, or delete it")
    return cache


def _keep_timing_cache(config: Any, plan: Plan) -> None:
    if plan.timing_cache is None:
        return
    cache = config.get_timing_cache()
    if cache is not None:
        temporary = plan.timing_cache.with_name(f".{plan.timing_cache.name}.new")
        temporary.write_bytes(bytes(cache.serialize()))
        temporary.replace(plan.timing_cache)


def _monitor(trt: TensorRT, progress: Progress) -> Any:
    class Monitor(trt.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells of the outermost phase that counts more than one step."""

        def __init__(self) -> None:
            trt.module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.totals.get(phase_name, step + 1))
            return True

    return Monitor()
