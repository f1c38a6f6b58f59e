"""One model on its way through the passes, whatever represents it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import onnx_ir as ir

from mla_opt.graphs.protocol import Graph
from mla_opt.options import Options, Target
from mla_opt.programs.recognize import is_program, is_program_file
from mla_opt.report.inspection import OperatorReport
from mla_opt.report.report import ModelFile, StoredBytes
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.site import PrefillForm
from mla_opt.subject.onnx_model import OnnxLike, OnnxSubject, load

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    ModelLike = OnnxLike | ExportedProgram | GraphModule

__all__ = ["OnnxSubject", "Subject", "load", "subject"]


class Subject(Protocol):
    """A copy of a model that passes may rewrite, beside the model as it came."""

    @property
    def graph(self) -> Graph:
        """The copy, as passes see it."""

    @property
    def has_content(self) -> bool:
        """Whether the stored tensors have a content, so that parts of the graph can be run."""

    @property
    def optimized_by(self) -> str | None:
        """The release that has optimized the model already, by what the model says of itself."""

    def operators(self) -> tuple[OperatorReport, ...]:
        """The attentions that were rewritten before, where the model is an optimized one."""

    def settle(self, options: Options) -> Options:
        """The options with what they leave open decided for this kind of model.

        Raises:
            InputError: an option is not for it.
        """

    def cautions(self, dtypes: Collection[str]) -> tuple[str, ...]:
        """What to know of running such a model, whose attentions compute in ``dtypes``."""

    def file(self) -> ModelFile | None:
        """The file that the model came from, if it did."""

    def interfaces(self) -> tuple[ir.Model, ir.Model]:
        """Inputs and outputs, before and after."""

    def stored(self) -> StoredBytes:
        """Bytes of the weights, before and after."""

    def record(self, sites: Sequence[LatentAttentionSite]) -> None:
        """Write into the copy what was done to it."""

    def original(self) -> Any:
        """The model as it came, to be verified against."""

    def unchanged(self) -> Any:
        """The model as it came, as a model that may be changed where the copy might be."""

    def result(self) -> Any:
        """The copy, as a model of the kind that came."""


def subject(
    model: ModelLike,
    target: Target = "onnxruntime",
    least_opset: int = 0,
    prefill: PrefillForm = "auto",
) -> Subject:
    """Open a model of any kind, to be rewritten for ``target``, in an opset that is new enough.

    Raises:
        InputError: it cannot be used.
    """
    if is_program(model) or is_program_file(model):
        from mla_opt.subject.torch_program import ProgramSubject

        return ProgramSubject(model)
    return OnnxSubject(cast(OnnxLike, model), target, least_opset, prefill)
