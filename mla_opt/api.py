"""The Python API: find, inspect and optimize latent attention in a model.

Every function takes a path (of an ONNX model, or of a program that `torch.export.save` wrote, named
``.pt2``), an ``onnx.ModelProto``, an ``onnx_ir.Model``, a ``torch.export.ExportedProgram`` or a
``torch.fx.GraphModule``, and none changes what it is given. Loading a program can run code in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mla_opt.background import Background
from mla_opt.errors import (
    CACHE_NOT_RECOGNIZED,
    REFUSALS_OF_TARGETS,
    InputError,
    NothingMatchedError,
    PassError,
    Refusal,
    RefusedError,
    VerificationError,
    nothing_matched,
)
from mla_opt.events import Observer, PassFinished, PassStarted
from mla_opt.graphs.protocol import Graph
from mla_opt.options import Absorb, CacheType, MatmulNbits, Options, Phase, Target, Weights
from mla_opt.pipeline import Pass, PassRecord, Pipeline
from mla_opt.programs.recognize import is_program
from mla_opt.report.inspection import AttentionReport, InspectionReport
from mla_opt.report.interface_changes import interface_changes
from mla_opt.report.report import OptimizationReport, PassReport, SiteReport
from mla_opt.report.site import SiteFacts, site_report
from mla_opt.sites import LatentAttentionSite, PrefillForm
from mla_opt.subject import Subject, load, subject
from mla_opt.verification.extent import Extent, checked, verify_as
from mla_opt.verification.onnx.sessions import open_model
from mla_opt.verification.running import RunError

if TYPE_CHECKING:
    from mla_opt.subject import ModelLike


#: Of the inputs that a result is verified on. Both models are our own here, so nobody has to be
#: surprised, and two runs on one model say the same; `verify` draws other inputs each time.
SEED = 0

#: The passes that find and decide, and rewrite no attention.
LOOKING = (
    "drop_no_ops",
    "take_out_roundings",
    "find_latent_attention",
    "extract_weights",
    "check_roundings",
    "choose_form",
)


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """An optimized model and the report of how it was made.

    ``model`` is an ``onnx_ir.Model`` for everything that is ONNX, else a program of the kind that
    was given.
    """

    model: Any
    report: OptimizationReport


def optimize(
    model: ModelLike,
    *,
    target: Target = "onnxruntime",
    absorb: Absorb = "auto",
    cache: str = "keep",
    cache_type: CacheType = "keep",
    prefill: PrefillForm = "auto",
    verify: bool | Extent = True,
    passes: Sequence[str] | None = None,
    phase: Phase = "decode",
    plugin: bool = True,
    keep_activation_quantization: bool = False,
    weights: Weights = "auto",
    matmul_nbits: MatmulNbits = "keep",
    allow_unmatched: bool = False,
    observer: Observer | None = None,
) -> OptimizeResult:
    """Absorb and fuse every latent attention of a model, and prove the result.

    Args:
        model: a path, a proto, a graph or a PyTorch program; it is not changed.
        target: ``onnxruntime`` puts the fused operator into the model, with its function body
            where the model is ONNX, ``portable`` standard operators only, ``tensorrt`` makes the
            graph of one ``phase`` of an engine, in opset 24, in place on caches of ``static:ROWS``,
            ``onnxruntime-paged`` ONNX Runtime's PagedAttention over packed tokens and blocks.
        absorb: ``factored`` keeps W_UK and W_UV as two small matrices, the folded forms multiply
            them into their neighbours, ``auto`` asks the cost model, ``none`` only rebuilds the
            attention without what its exporter added.
        cache: ``keep``, ``packed``, ``even`` (ONNX only) or ``static[:CAPACITY]``.
        cache_type: ``float16`` or ``bfloat16`` keeps the rows of a float32 model in 16 bits,
            ``int8`` or ``fp8`` in 8, with a scale for each 128 numbers; not with cache ``keep``.
        prefill: the form for long queries; ``auto`` chooses at run time.
        verify: run both models and compare before returning. ``"by-layer"`` runs only the parts
            that differ, one at a time; ``"whole"`` runs whole models; ``True`` chooses: by layer
            where both do not fit into memory, where caches are rounded and the model has experts,
            and where a model is one rank of several.
        passes: names of passes to run instead of the default ones.
        phase: for ``tensorrt``, ``prefill`` of whole prompts or ``decode``.
        plugin: for ``tensorrt``, whether the operator stays, for the plugin, where the plugin has
            a kernel for the widths C and R.
        keep_activation_quantization: refuse attentions whose activations are quantized; if not,
            they are rewritten without that, and the report says so.
        weights: ``keep`` lets one operator hold W_UK and W_UV in the bits that the model stores
            them in, for ``onnxruntime``; ``float`` stores them in the type of the queries; ``auto``
            keeps them where that is possible and nothing folds them.
        matmul_nbits: ``kernel`` lets the kernel library run MatMulNBits of accuracy level 4, for
            ``onnxruntime``: faster on CPUs with AVX-512 VNNI, and ONNX Runtime's own elsewhere.
        allow_unmatched: return the model as it is if nothing matches.
        observer: told of every pass and every verification run.

    Raises:
        InputError: the model or an option cannot be used.
        NothingMatchedError: no latent attention was found; carries the report.
        RefusedError: the caches cannot all be what ``cache`` asks for, or the target cannot compute
            the model; carries the report.
        VerificationError: the result computes something else; carries the report.
    """
    options = Options(
        target,
        absorb,
        cache,
        prefill,
        cache_type,
        passes,
        phase,
        plugin,
        keep_activation_quantization,
        weights,
        matmul_nbits,
    )
    extent = checked(verify)
    opened = subject(model, target, options.least_opset, prefill)
    options = opened.settle(options)
    graph = opened.graph
    source = Background(opened.file)  # hashing a large file takes as long as the passes
    records = _passed(opened, options, observer)
    report = replace(_report(opened, records, options), input=source.result())
    if not graph.sites and not allow_unmatched:
        raise NothingMatchedError(_why_nothing(report, opened.optimized_by), report)
    _check_asked_for(report)
    if graph.sites:
        opened.record(graph.sites)
    result = opened.result() if graph.sites or passes is not None else opened.unchanged()
    if extent is not None and graph.sites and opened.has_content:
        report = _verified(extent, opened.original(), result, report, observer)
    return OptimizeResult(result, report)


def _passed(opened: Subject, options: Options, observer: Observer | None) -> tuple[PassRecord, ...]:
    """Run the passes.

    Raises:
        InputError: a pass failed on a model that its own runtime does not load either.
        PassError: a pass failed on a good model.
    """
    try:
        return options.pipeline().run(opened.graph, _narrate(observer))
    except PassError:
        complaint = _complaint(opened.original())
        if complaint is None:
            raise
        raise InputError(complaint) from None


def _complaint(model: Any) -> str | None:
    """What ONNX Runtime says against a model that it does not load; ``None``: nothing."""
    if is_program(model):
        return None
    try:
        open_model(model, "original").session(optimized=False)
    except (RunError, InputError) as error:
        return str(error)
    return None


def _check_asked_for(report: OptimizationReport) -> None:
    """What was asked for by name is done to every layer, or refused.

    Raises:
        RefusedError: the cache of a latent attention is none that can be changed, or the target
            cannot compute the model.
    """
    unfit = [each for each in report.refusals if each.code in REFUSALS_OF_TARGETS]
    if unfit:
        first = unfit[0]
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        raise RefusedError(
            f"target {report.options['target']} cannot be had ({first.code}): {first.site}:"
            f" {first.reason}{more}; {first.remedy}",
            report,
        )
    left = [each for each in report.refusals if each.code == CACHE_NOT_RECOGNIZED]
    if left:
        names = ", ".join(each.site for each in left)
        raise RefusedError(
            f"cache {report.options['cache']} cannot be had for {len(left)} of"
            f" {len(report.sites)} latent attentions ({left[0].code}): {names}; {left[0].reason};"
            " ask for cache 'keep'",
            report,
        )


def inspect(model: ModelLike) -> InspectionReport:
    """Tell of every attention of a model whether it is latent, and if not, why not.

    Raises:
        InputError: the model cannot be used.
    """
    opened = subject(model)
    graph = opened.graph
    # Before they change anything: those that decide are the passes of optimize itself.
    records = _passed(opened, opened.settle(Options(passes=LOOKING)), None)
    matched = [_attention(graph, site) for site in graph.sites]
    refused = [_refused(each) for record in records for each in record.result.refusals]
    attentions = sorted((*matched, *refused), key=lambda each: _natural(each.name))
    return InspectionReport(tuple(attentions), opened.file(), _notes(opened), opened.operators())


def find(model: ModelLike) -> tuple[AttentionReport, ...]:
    """The latent attentions of a model, proved but not rewritten."""
    return inspect(model).matched


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


def _report(opened: Subject, records: Sequence[PassRecord], options: Options) -> OptimizationReport:
    before, after = opened.interfaces()
    sites = tuple(_site(opened.graph, site) for site in opened.graph.sites)
    return OptimizationReport(
        options=options.as_dict(),
        sites=sites,
        refusals=tuple(each for record in records for each in record.result.refusals),
        passes=tuple(_pass(record) for record in records),
        interface_changes=interface_changes(before, after),
        stored=opened.stored(),
        notes=(
            *(each for record in records for each in record.result.warnings),
            *opened.cautions({site.dtype for site in sites}),
        ),
    )


def _pass(record: PassRecord) -> PassReport:
    result = record.result
    return PassReport(record.name, result.matched, result.rewritten, record.seconds, result.notes)


def _site(graph: Graph, site: LatentAttentionSite) -> SiteReport:
    return site_report(SiteFacts.of(site, _element_type(graph, site)))


def _attention(graph: Graph, site: LatentAttentionSite) -> AttentionReport:
    return AttentionReport(
        name=site.name,
        matched=True,
        geometry=site.geometry,
        cache_family=site.family,
        nodes=tuple(graph.label(node) for node in site.core.nodes),
        dtype=_element_type(graph, site),
        form=site.form,
        form_reason=site.form_reason,
        prefill=site.prefill,
        prefill_reason=site.prefill_reason,
    )


def _element_type(graph: Graph, site: LatentAttentionSite) -> str:
    """Element type of a site's activations, in NumPy's words."""
    return str(graph.dtype(site.core.query))


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


def _notes(opened: Subject) -> tuple[str, ...]:
    """What is to be known before reading an inspection."""
    if opened.optimized_by is None:
        return ()
    return (f"{opened.optimized_by} has optimized this model",)


def _why_nothing(report: OptimizationReport, optimized_by: str | None) -> str:
    if optimized_by is not None:
        return f"{optimized_by} has optimized the model already; give the model as it was exported"
    return nothing_matched(report.refusals)


def _verified(
    extent: Extent,
    original: Any,
    optimized: Any,
    report: OptimizationReport,
    observer: Observer | None,
) -> OptimizationReport:
    try:
        parity = verify_as(extent, original, optimized, seed=SEED, progress=observer)
    except InputError as error:
        raise InputError(f"{error}; verification can be left out (--no-verify)") from error
    report = replace(report, verification=parity.as_dict())
    if not parity.passed:
        raise VerificationError(
            f"the optimized model was not shown to compute the same: {'; '.join(parity.failures)}",
            report,
        )
    return report


__all__ = ["Pipeline", "find", "inspect", "load", "optimize"]
