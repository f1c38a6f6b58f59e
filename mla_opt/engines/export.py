"""From a model to a folder of engines: lower, verify, convert, build, and write down what was made.

Everything that can be found wrong without the model is found wrong first; the folder appears whole
or not at all.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from mla_opt import api
from mla_opt.engines.build import Engine, Plan, build, check_capabilities
from mla_opt.engines.cuda_driver import Device, current_device
from mla_opt.engines.layers import attention_layers, written_in_place
from mla_opt.engines.manifest import (
    MANIFEST,
    Attention,
    Builder,
    Cache,
    File,
    Lowered,
    Manifest,
    PhaseEngine,
    Plugin,
    Tensor,
)
from mla_opt.engines.plugin_library import (
    check_plugin,
    default_plugin,
    has_kernel,
    listed_widths,
)
from mla_opt.engines.precision import NARROW, Precision, convert, weight_type
from mla_opt.engines.profiles import Ranges, Shapes
from mla_opt.engines.tensorrt_library import Runtime, TensorRT, check_plugins, load
from mla_opt.errors import InputError
from mla_opt.events import Observer
from mla_opt.files.model_io import (
    check_input,
    check_no_input,
    check_replaced,
    model_files,
    read_model,
    sha256,
    write_model,
    write_text,
)
from mla_opt.geometry import MlaGeometry
from mla_opt.kernels.trust import remember
from mla_opt.operator.contract import OP_TYPE, PLUGIN_NAMESPACE, PLUGIN_VERSION, is_operator
from mla_opt.options import Phase
from mla_opt.passes.lower_to_tensorrt import LowerToTensorrt
from mla_opt.report.report import OptimizationReport
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import optimized_driver
from mla_opt.version import tool_version

PHASES: tuple[Phase, ...] = ("prefill", "decode")

Say = Callable[[str, int, int], None]
"""Told what is going on, and how many steps of how many are done; 0 of 0 where it has none."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    Attributes:
        ranges: the sizes to build for.
        precision: of products and caches; ``None`` keeps 16 bits and makes bfloat16 of float32.
        runtime: which TensorRT builds.
        compute_capabilities: to build for, with TensorRT-RTX.
        use_plugin: whether decode steps run by the plugin, where that has a kernel for the widths.
        plugin: the library; where `mla-opt build-kernels` puts it, if not given. It is needed
            where an attention has widths that the plugin has kernels for.
        embed_plugin: whether the decode engine carries the plugin.
        timing_cache: a file that makes later builds faster.
        onnx_only: write the ONNX files and build nothing.
        verify: run the lowered graphs against the model before they are converted.
        force: replace an export that is there.
    """

    ranges: Ranges
    precision: Precision | None = None
    runtime: Runtime = "tensorrt"
    compute_capabilities: tuple[int, ...] = ()
    use_plugin: bool = True
    plugin: Path | None = None
    embed_plugin: bool = False
    timing_cache: Path | None = None
    onnx_only: bool = False
    verify: bool = True
    force: bool = False


@dataclass(slots=True)
class _Tools:
    """What the options name, found and checked."""

    trt: TensorRT | None = None
    device: Device | None = None
    plugin: Path | None = None
    capabilities: tuple[int, ...] = ()


@dataclass(slots=True)
class _Phase:
    """One phase under way."""

    phase: Phase
    model: ir.Model
    report: OptimizationReport
    profile: dict[str, Shapes] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def export(
    source: Path,
    folder: Path,
    options: ExportOptions,
    *,
    say: Say | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Write the engines of a model, their ONNX files and a manifest into ``folder``.

    Raises:
        InputError: something is not there, does not fit, or TensorRT refuses it.
        NothingMatchedError: the model has no latent attention.
        VerificationError: a lowered graph computes something else.
    """
    tell = say or (lambda text, done, total: None)
    check_input(source)
    check_folder(folder, options.force)
    tools = _tools(options)
    tell(f"reading {source}", 0, 0)
    model = read_model(source)
    _check_inputs(source, model, folder, options)
    _choose_plugin(model, options, tools, tell)
    phases = [_lowered(model, phase, options, observer) for phase in PHASES]
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        made = [_made(each, temporary, options, tools, tell) for each in phases]
        tell(f"hashing {source}", 0, 0)
        manifest = _manifest(phases, made, options, tools, temporary, _hash(source, model))
        write_text(temporary / MANIFEST, manifest.to_json())
        _settle(temporary, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_folder(folder: Path, force: bool) -> None:
    """Find out before the work, not after it, that a folder cannot be written.

    Raises:
        InputError: it is there and holds something else than an export, or is not to be replaced.
    """
    if not folder.exists():
        return
    empty = folder.is_dir() and not any(folder.iterdir())
    ours = (folder / MANIFEST).is_file()
    if not empty and not ours:
        raise InputError(f"{folder}: is there and is no export; give another folder with -o")
    if ours and not force:
        raise InputError(f"{folder}: is there already; give another folder, or --force")


def _check_inputs(source: Path, model: ir.Model, folder: Path, options: ExportOptions) -> None:
    """Check that nothing that is read would be removed with the folder, or written over."""
    inputs = model_files(source, model)
    check_replaced(folder, (*inputs, *filter(None, [options.plugin])))
    if options.timing_cache is not None:
        check_no_input(options.timing_cache, inputs)


def _settle(temporary: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    temporary.replace(folder)


def _tools(options: ExportOptions) -> _Tools:
    """Find and check everything that is not the model."""
    _check_options(options)
    tools = _Tools(capabilities=options.compute_capabilities)
    if options.onnx_only:
        return tools
    tools.trt = load(options.runtime)
    if options.compute_capabilities:
        check_capabilities(tools.trt, options.compute_capabilities)
    if options.runtime == "tensorrt":
        tools.device = current_device()
        tools.capabilities = (tools.device.compute_capability,)
    if options.plugin is not None:
        check_plugin(options.plugin, (), tools.capabilities)
    return tools


def _check_options(options: ExportOptions) -> None:
    """Raise `InputError` for options that contradict each other, or are not enough."""
    if options.embed_plugin and not options.use_plugin:
        raise InputError("there is no plugin to embed (--no-plugin); leave --embed-plugin out")
    if options.plugin is not None and not options.use_plugin:
        raise InputError(
            f"the plugin {options.plugin} would not be used (--no-plugin); leave one of them out"
        )
    rtx = options.runtime == "rtx" and not options.onnx_only
    if rtx and not options.compute_capabilities:
        raise InputError("TensorRT-RTX needs to know what to build for (--sm 89,120)")


def _choose_plugin(model: ir.Model, options: ExportOptions, tools: _Tools, tell: Say) -> None:
    """Find the plugin's library and check it, if an attention of the model is run by it.

    Raises:
        InputError: it is needed, and not there or not able; or it is named, and not needed.
    """
    if tools.trt is None or not options.use_plugin:
        return
    tell("looking for attention that the plugin has kernels for", 0, 0)
    geometries = [(name, each) for name, each in _found(model) if has_kernel(each)]
    if geometries:
        check_plugins(tools.trt)
        tools.plugin = options.plugin or default_plugin()
        check_plugin(tools.plugin, geometries, tools.capabilities)
    elif options.plugin is not None or options.embed_plugin:
        raise InputError(
            "the plugin would not be used: no attention of this model has widths that it has"
            f" kernels for ({listed_widths()}); leave --plugin and --embed-plugin out, and"
            " standard operators do the work"
        )


def _found(model: ir.Model) -> list[tuple[str, MlaGeometry]]:
    """The latent attentions of the model as it came."""
    return [(each.name, each.geometry) for each in api.find(model) if each.geometry is not None]


def _lowered(
    model: ir.Model, phase: Phase, options: ExportOptions, observer: Observer | None
) -> _Phase:
    result = api.optimize(
        model,
        target="tensorrt",
        phase=phase,
        plugin=options.use_plugin,
        cache=f"static:{options.ranges.rows}",
        verify=options.verify,
        observer=observer,
    )
    changes = InterfaceMap.of(result.model)
    caches = {name for state in changes.states for name in state.optimized.inputs}
    _check_states(result.model, changes, caches)
    lowered = _Phase(phase, result.model, result.report)
    lowered.profile = dict(options.ranges.profile(result.model, phase))
    lowered.model = convert(result.model, _precision(model, options), caches)
    return lowered


def _check_states(model: ir.Model, changes: InterfaceMap, caches: set[str]) -> None:
    """An engine keeps buffers of latent rows, and nothing else from call to call."""
    states = optimized_driver(model, changes).interface.states
    others = [each.input.name for each in states if each.input.name not in caches]
    if others:
        raise InputError(
            f"the model also keeps {', '.join(others)}, which is no cache of latent rows; engines"
            " are made of models that keep nothing else"
        )


def _precision(model: ir.Model, options: ExportOptions) -> Precision:
    if options.precision is not None:
        return options.precision
    found = weight_type(model)
    named = {dtype: name for name, dtype in NARROW.items()}
    kept = named.get(found, "bfloat16")
    return "float16" if kept == "float16" else "bfloat16"


def _geometries(phase: _Phase) -> dict[str, MlaGeometry]:
    return {site.name: site.geometry for site in phase.report.sites}


def _made(
    phase: _Phase, folder: Path, options: ExportOptions, tools: _Tools, tell: Say
) -> Engine | None:
    """Write the ONNX file of a phase, and build and write its engine."""
    path = folder / f"{phase.phase}.onnx"
    tell(f"writing {path.name}", 0, 0)
    phase.files = write_model(phase.model, path)
    if tools.trt is None:
        return None
    operators = _operators(phase.model)
    plan = Plan(
        onnx=path,
        profile=phase.profile,
        operators=operators,
        plugin=tools.plugin if operators else None,
        embed=options.embed_plugin,
        compute_capabilities=options.compute_capabilities,
        timing_cache=options.timing_cache,
    )
    engine = build(
        tools.trt, plan, lambda text, done, of: tell(f"{phase.phase} engine: {text}", done, of)
    )
    (folder / f"{phase.phase}.engine").write_bytes(engine.content)
    return engine


def _operators(model: ir.Model) -> list[str]:
    """Names of the nodes that the plugin runs."""
    nodes = (node for node in model.graph if is_operator(node.domain, node.op_type))
    return [node.name or "" for node in nodes]


def _hash(source: Path, model: ir.Model) -> str:
    return sha256(model_files(source, model))


def _manifest(
    phases: Sequence[_Phase],
    engines: Sequence[Engine | None],
    options: ExportOptions,
    tools: _Tools,
    folder: Path,
    source_sha256: str,
) -> Manifest:
    decode = phases[-1]
    changes = InterfaceMap.of(decode.model)
    caches = _caches(decode.model, changes, options.ranges.rows)
    return Manifest(
        source_sha256=source_sha256,
        precision="float16" if caches[0].dtype == "float16" else "bfloat16",
        rows=options.ranges.rows,
        past_len=changes.past_len_input or "",
        caches=caches,
        geometries=_geometries(decode),
        phases=tuple(
            _phase_engine(phase, engine, caches, folder) for phase, engine in zip(phases, engines)
        ),
        plugin=_plugin(options, tools, folder) if _operators(decode.model) else None,
        builder=_builder(tools, options),
        verified=options.verify,
        tool_version=tool_version(),
    )


def _caches(model: ir.Model, changes: InterfaceMap, rows: int) -> tuple[Cache, ...]:
    inputs = {value.name: value for value in model.graph.inputs}
    found: list[Cache] = []
    for state in changes.states:
        (past,), (present,) = state.optimized.inputs, state.optimized.outputs
        width = state.kv_lora_rank + state.qk_rope_head_dim
        found.append(Cache(past, present, _dtype(inputs[past]), rows, width))
    return tuple(found)


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy().name)


def _phase_engine(
    phase: _Phase, engine: Engine | None, caches: Sequence[Cache], folder: Path
) -> PhaseEngine:
    graph, layers = phase.model.graph, engine.layers if engine is not None else ()
    names = [site.name for site in phase.report.sites]
    attentions = attention_layers(layers, names, phase.phase)
    pairs = [(cache.input, cache.output) for cache in caches]
    return PhaseEngine(
        phase=phase.phase,
        onnx=tuple(_file(path) for path in phase.files),
        engine=None if engine is None else _file(folder / f"{phase.phase}.engine"),
        inputs=tuple(_tensor(value, phase.profile[value.name or ""]) for value in graph.inputs),
        outputs=tuple(_tensor(value) for value in graph.outputs),
        attentions=tuple(
            Attention(a.name, _lowered_to(phase, a.name), a.became, a.kernels) for a in attentions
        ),
        notes=tuple(
            note
            for each in phase.report.passes
            if each.name == LowerToTensorrt.name
            for note in each.notes
        ),
        cache_in_place=written_in_place(layers, pairs) if layers else None,
    )


def _lowered_to(phase: _Phase, site: str) -> Lowered:
    """What the graph has for a site."""
    if phase.phase == "prefill":
        return "prompt"
    own = (name.startswith(f"{site}/mla/") for name in _operators(phase.model))
    return "plugin" if any(own) else "operators"


def _tensor(value: ir.Value, profile: Shapes | tuple[()] = ()) -> Tensor:
    dims = () if value.shape is None else tuple(value.shape)
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in dims)
    return Tensor(value.name or "", _dtype(value), shape, tuple(profile))


def _file(path: Path) -> File:
    return File(path.name, sha256([path]), path.stat().st_size)


def _plugin(options: ExportOptions, tools: _Tools, folder: Path) -> Plugin:
    """Put the library beside the engine, unless the engine carries it or there is none."""
    beside = None
    if tools.plugin is not None and not options.embed_plugin:
        beside = folder / tools.plugin.name
        shutil.copyfile(tools.plugin, beside)
        remember(beside)
    return Plugin(
        PLUGIN_NAMESPACE, OP_TYPE, PLUGIN_VERSION, None if beside is None else _file(beside)
    )


def _builder(tools: _Tools, options: ExportOptions) -> Builder | None:
    if tools.trt is None:
        return None
    device = None if tools.device is None else tools.device.name
    return Builder(options.runtime, tools.trt.version, tools.capabilities, device)
