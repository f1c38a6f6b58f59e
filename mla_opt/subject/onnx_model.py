"""An ONNX file, proto or graph on its way through the passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir

from mla_opt import metadata
from mla_opt.errors import InputError
from mla_opt.files.model_io import check_order, describe, from_proto, model_files, read_model
from mla_opt.files.weights import has_bytes, weight_bytes
from mla_opt.graphs.interface.dims import Port
from mla_opt.graphs.onnx.conditionals import declare_shapes_of_conditionals
from mla_opt.graphs.onnx.fused import fused_attentions
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.local_functions import inlined
from mla_opt.graphs.onnx.opset import at_least
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.operator.contract import DOMAIN
from mla_opt.operator.matmul_nbits import has_kernel, runtimes_nbits
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, PORTABLE, TENSORRT, BodyStyle
from mla_opt.options import Options, Target
from mla_opt.report.inspection import OperatorReport
from mla_opt.report.report import ModelFile, StoredBytes
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.site import PrefillForm

STYLES: dict[Target, BodyStyle] = {
    "onnxruntime": ONNX_RUNTIME,
    "portable": PORTABLE,
    "tensorrt": TENSORRT,
    "onnxruntime-paged": ONNX_RUNTIME,
}

OnnxLike = str | PathLike[str] | onnx.ModelProto | ir.Model

WIDENED = (
    "the model is float16, which ONNX Runtime's CPU provider computes in float32: it widens weights"
    " when it loads the model, but W_UK and W_UV of an attention that has two forms at every step."
    " With weights keep, prefill absorbed or cache static, a step takes no longer than the float32"
    " model's"
)

LEFT_TO_RUNTIME = (
    "{0} MatMulNBits of accuracy level 4 are left to ONNX Runtime; --matmul-nbits kernel"
    " (matmul_nbits) lets the kernel library run them, which is faster on CPUs with AVX-512 VNNI"
)

NOT_RUN = (
    "only ONNX Runtime's CUDA provider has PagedAttention, so the operator itself was not run here:"
    " models are verified with its definition in its place"
)


class OnnxSubject:
    """An ONNX file, proto or graph."""

    def __init__(
        self,
        model: OnnxLike,
        target: Target,
        least_opset: int = 0,
        prefill: PrefillForm = "auto",
    ) -> None:
        self._given, self._target = model, target
        self._before = load(model)
        self._after = _copy(inlined(self._before), least_opset)
        _drop_uncalled_functions(self._after)
        self._graph = OnnxGraph(self._after, style=_style(target, prefill))

    @property
    def graph(self) -> Graph:
        """The adapter as the protocol: its values are the protocol's opaque handles."""
        return cast(Graph, self._graph)

    @property
    def has_content(self) -> bool:
        """A file without its weights is refused when it is read."""
        return True

    @property
    def optimized_by(self) -> str | None:
        """What the file's metadata says."""
        return metadata.by_whom(self._before.metadata_props)

    def operators(self) -> tuple[OperatorReport, ...]:
        """Read off the nodes and the file's metadata."""
        nodes = fused_attentions(self._graph)
        graphs = list(self._before.graphs())
        stored = {
            name: tuple(value.const_value.shape.numpy())
            for graph in graphs
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        made = {value.name or "" for graph in graphs for node in graph for value in node.outputs}
        return metadata.operators(self._before.metadata_props, nodes, stored, made)

    def settle(self, options: Options) -> Options:
        """Every option is for ONNX."""
        return options

    def cautions(self, dtypes: Collection[str]) -> tuple[str, ...]:
        """What ONNX Runtime's CPU provider does not do: compute in float16, attend to blocks."""
        if self._target == "onnxruntime-paged":
            return (NOT_RUN,)
        widened = (WIDENED,) if "float16" in dtypes and self._target != "tensorrt" else ()
        return (*widened, *self._left_to_runtime())

    def _left_to_runtime(self) -> Sequence[str]:
        """What another option would let the kernel library run."""
        if self._target != "onnxruntime" or not self._graph.sites:
            return ()
        left = sum(map(has_kernel, runtimes_nbits(self._after)))
        return (LEFT_TO_RUNTIME.format(left),) if left else ()

    def file(self) -> ModelFile | None:
        """Hash and size of the file."""
        if not isinstance(self._given, str | PathLike):
            return None
        return describe(model_files(Path(self._given), self._before), self._before)

    def interfaces(self) -> tuple[ir.Model, ir.Model]:
        """Both models."""
        return self._before, self._after

    def stored(self) -> StoredBytes:
        """Of initializers and constants of both models."""
        return StoredBytes(_stored_bytes(self._before), _stored_bytes(self._after))

    def record(self, sites: Sequence[LatentAttentionSite]) -> None:
        """Write it into the model's metadata."""
        dropped = self._dropped(sites) if self._target == "onnxruntime-paged" else ()
        metadata.record(self._after.metadata_props, sites, self._is_stored, dropped)

    def _dropped(self, sites: Sequence[LatentAttentionSite]) -> tuple[metadata.Dropped, ...]:
        """Inputs that are gone: those of the caches stand for others."""
        stored, graph = self._before.graph.initializers, self._before.graph
        caches = [site.original_cache.inputs for site in sites if site.original_cache is not None]
        known: set[str | None] = {name for names in caches for name in names}
        known |= {value.name for value in self._after.graph.inputs}
        gone = (v for v in graph.inputs if v.name not in known and v.name not in stored)
        return tuple(_dropped_input(value) for value in gone)

    def _is_stored(self, value: Value) -> bool:
        return value.name in self._after.graph.initializers

    def original(self) -> Any:
        """The path, where there is one: runtimes load it as it is."""
        return Path(self._given) if isinstance(self._given, str | PathLike) else self._before

    def unchanged(self) -> ir.Model:
        """A copy of the model as it came."""
        return self._before.clone()

    def result(self) -> ir.Model:
        """The graph; runtimes that ask for the shapes of what conditionals return find them."""
        declare_shapes_of_conditionals(self._after)
        return self._after


def _dropped_input(value: ir.Value) -> metadata.Dropped:
    port = Port.of(value)
    kind = ir.DataType.FLOAT if port.dtype is None else port.dtype
    return port.name, kind.name, port.sizes


def _style(target: Target, prefill: PrefillForm) -> BodyStyle:
    """Who asks for one form of standard operators gets no conditional: few runtimes know them."""
    one_form = target == "portable" and prefill == "absorbed"
    return replace(STYLES[target], adaptive=False) if one_form else STYLES[target]


def load(model: OnnxLike) -> ir.Model:
    """The model as onnx_ir, its nodes in order; files are checked, and read lazily.

    Raises:
        InputError: the model cannot be used.
    """
    if isinstance(model, ir.Model):
        check_order(model)
        return model
    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    return read_model(Path(model))


def _copy(original: ir.Model, least_opset: int) -> ir.Model:
    """A copy of the model, in an opset that is new enough."""
    raised = at_least(original, least_opset)
    return raised.clone() if raised is original else raised


def _drop_uncalled_functions(model: ir.Model) -> None:
    """Forget functions of our domain that nothing calls.

    A file may bring them under the names of ours; what we put in has bodies of our own.

    Raises:
        InputError: the model calls such functions, and none of our releases says that it wrote it.
    """
    calls = [
        node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == DOMAIN
    ]
    if not calls:
        for key in [key for key in model.functions if key[0] == DOMAIN]:
            del model.functions[key]
    elif metadata.by_whom(model.metadata_props) is None:
        raise InputError(
            f"node {calls[0].name or calls[0].op_type!r} calls {DOMAIN}::{calls[0].op_type}, and"
            " the file does not say that mla-opt has written it; rename the domain of its functions"
        )


def _stored_bytes(model: ir.Model) -> int:
    constants = (
        attribute.as_tensor()
        for graph in model.graphs()
        for node in graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    )
    once = {id(tensor): tensor for tensor in constants if has_bytes(tensor)}
    return weight_bytes(model) + sum(tensor.nbytes for tensor in once.values())
