"""The Python API: find, inspect and optimize latent attention in an ONNX model.

Every function takes a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``, and none changes what
it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import cast

import onnx
import onnx_ir as ir

from mla_opt import metadata
from mla_opt.errors import InputError, NothingMatchedError, Refusal, VerificationError
from mla_opt.events import Observer, PassFinished, PassStarted
from mla_opt.graphs.onnx_graph import OnnxGraph
from mla_opt.graphs.protocol import Graph
from mla_opt.model_io import describe, model_files, read_model
from mla_opt.options import Absorb, CacheType, Options, Phase, Target
from mla_opt.pipeline import Pass, PassRecord, Pipeline
from mla_opt.report.inspection import AttentionReport, InspectionReport
from mla_opt.report.interface_changes import interface_changes
from mla_opt.report.report import ModelFile, OptimizationReport, PassReport, SiteReport
from mla_opt.report.site import SiteFacts, site_report
from mla_opt.sites import LatentAttentionSite, PrefillForm
from mla_opt.verification import verify as run_verification

ModelLike = str | PathLike[str] | onnx.ModelProto | ir.Model


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """An optimized model and the report of how it was made."""

    model: ir.Model
    report: OptimizationReport


def optimize(
    model: ModelLike,
    *,
    target: Target = "onnxruntime",
    absorb: Absorb = "auto",
    cache: str = "keep",
    cache_type: CacheType = "keep",
    prefill: PrefillForm = "auto",
    verify: bool = True,
    passes: Sequence[str] | None = None,
    phase: Phase = "decode",
    plugin: bool = True,
    allow_unmatched: bool = False,
    observer: Observer | None = None,
) -> OptimizeResult:
    """Absorb and fuse every latent attention of a model, and prove the result.

    Args:
        model: a path, a proto or a graph; it is not changed.
        target: ``onnxruntime`` puts the fused operator with its function body into the model,
            ``portable`` standard operators only, ``tensorrt`` makes the graph of one ``phase`` of
            an engine, in opset 24, in place on caches of ``static:ROWS``.
        absorb: ``factored`` keeps W_UK and W_UV as two small matrices, the folded forms multiply
            them into their neighbours, ``auto`` asks the cost model, ``none`` only rebuilds the
            attention without what its exporter added.
        cache: ``keep``, ``packed`` or ``static[:CAPACITY]``.
        cache_type: ``float16`` or ``bfloat16`` keeps the rows of a float32 model in 16 bits.
        prefill: the form for long queries; ``auto`` chooses at run time.
        verify: run both models and compare before returning.
        passes: names of passes to run instead of the default ones.
        phase: for ``tensorrt``, ``prefill`` of whole prompts or ``decode``.
        plugin: for ``tensorrt``, whether the operator stays, for the plugin.
        allow_unmatched: return the model as it is if nothing matches.
        observer: told of every pass and every verification run.

    Raises:
        InputError: the model or an option cannot be used.
        NothingMatchedError: no latent attention was found; carries the report.
        VerificationError: the result computes something else; carries the report.
    """
    options = Options(target, absorb, cache, prefill, cache_type, passes, phase, plugin)
    original = load(model)
    optimized = _in_opset_of(target, original)
    graph = OnnxGraph(optimized, adaptive=target != "tensorrt")
    with ThreadPoolExecutor(1) as aside:  # hashing a large file takes as long as the passes
        described = aside.submit(_file, model, original)
        records = options.pipeline().run(_view(graph), _narrate(observer))
        source = described.result()
    report = _report(original, optimized, graph, records, options)
    report = replace(report, input=source)
    if not graph.sites and not allow_unmatched:
        raise NothingMatchedError(_why_nothing(report), report)
    if graph.sites:
        metadata.record(optimized, graph.sites)
    if verify and graph.sites:
        report = _verified(model, original, optimized, report, observer)
    return OptimizeResult(optimized, report)


def inspect(model: ModelLike) -> InspectionReport:
    """Tell of every attention of a model whether it is latent, and if not, why not.

    Raises:
        InputError: the model cannot be used.
    """
    loaded = load(model)
    graph = OnnxGraph(loaded if isinstance(model, str | PathLike) else loaded.clone())
    records = (
        Options(passes=("find_latent_attention", "extract_weights")).pipeline().run(_view(graph))
    )
    matched = [_attention(graph, site) for site in graph.sites]
    refused = [_refused(each) for record in records for each in record.result.refusals]
    attentions = sorted((*matched, *refused), key=lambda each: _natural(each.name))
    return InspectionReport(tuple(attentions), _file(model, loaded))


def find(model: ModelLike) -> tuple[AttentionReport, ...]:
    """The latent attentions of a model, proved but not rewritten."""
    return inspect(model).matched


def load(model: ModelLike) -> ir.Model:
    """The model as onnx_ir; files are checked, and read lazily.

    Raises:
        InputError: the file cannot be used.
    """
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return ir.from_proto(model)
    return read_model(Path(model))


def _in_opset_of(target: Target, original: ir.Model) -> ir.Model:
    """A copy of the model, in an opset that has the target's operators."""
    if target != "tensorrt":
        return original.clone()
    from mla_opt.engines.opset import at_least

    raised = at_least(original)
    return raised.clone() if raised is original else raised


def _view(graph: OnnxGraph) -> Graph:
    """The adapter as the protocol: its values are the protocol's opaque handles."""
    return cast(Graph, graph)


def _file(model: ModelLike, loaded: ir.Model) -> ModelFile | None:
    if not isinstance(model, str | PathLike):
        return None
    return describe(model_files(Path(model), loaded), loaded)


def _narrate(
    observer: Observer | None,
) -> Callable[[int, int, Pass, PassRecord | None, Graph], None] | None:
    if observer is None:
        return None

    def tell(place: int, total: int, step: Pass, record: PassRecord | None, graph: Graph) -> None:
        if record is None:
            observer(PassStarted(step.name, place, total))
        else:
            observer(PassFinished(step.name, record.result, record.seconds, graph.text))

    return tell


def _report(
    original: ir.Model,
    optimized: ir.Model,
    graph: OnnxGraph,
    records: Sequence[PassRecord],
    options: Options,
) -> OptimizationReport:
    return OptimizationReport(
        options=options.as_dict(),
        sites=tuple(_site(graph, site) for site in graph.sites),
        refusals=tuple(each for record in records for each in record.result.refusals),
        passes=tuple(_pass(record) for record in records),
        interface_changes=interface_changes(original, optimized),
    )


def _pass(record: PassRecord) -> PassReport:
    result = record.result
    return PassReport(record.name, result.matched, result.rewritten, record.seconds, result.notes)


def _site(graph: OnnxGraph, site: LatentAttentionSite) -> SiteReport:
    return site_report(SiteFacts.of(site, _element_type(graph, site)))


def _attention(graph: OnnxGraph, site: LatentAttentionSite) -> AttentionReport:
    return AttentionReport(
        name=site.name,
        matched=True,
        geometry=site.geometry,
        cache_family=site.family,
        nodes=tuple(graph.label(cast(ir.Node, node)) for node in site.core.nodes),
        dtype=_element_type(graph, site),
    )


def _element_type(graph: OnnxGraph, site: LatentAttentionSite) -> str:
    """Element type of a site's activations, in NumPy's words."""
    return str(graph.dtype(cast(ir.Value, site.core.query)))


def _refused(refusal: Refusal) -> AttentionReport:
    return AttentionReport(
        name=refusal.site,
        matched=False,
        geometry=None,
        cache_family="none",
        refusal=refusal,
        nodes=refusal.nodes,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    parts = name.replace("#", ".").split(".")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _why_nothing(report: OptimizationReport) -> str:
    count = len(report.refusals)
    if not count:
        return "the model has no attention that mla-opt can see"
    codes = sorted({refusal.code for refusal in report.refusals})
    return f"none of {count} attentions is latent ({', '.join(codes)})"


def _verified(
    model: ModelLike,
    original: ir.Model,
    optimized: ir.Model,
    report: OptimizationReport,
    observer: Observer | None,
) -> OptimizationReport:
    source = Path(model) if isinstance(model, str | PathLike) else original
    try:
        parity = run_verification(source, optimized, progress=observer)
    except InputError as error:
        raise InputError(f"{error}; verification can be left out (--no-verify)") from error
    report = replace(report, verification=parity.as_dict())
    if not parity.passed:
        raise VerificationError(
            f"the optimized model computes something else: {'; '.join(parity.failures)}", report
        )
    return report


__all__ = ["Pipeline", "find", "inspect", "load", "optimize"]
