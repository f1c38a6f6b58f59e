"""A PyTorch program on its way through the passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx_ir as ir
import torch
from torch import fx

from mla_opt import metadata
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.torch.fused import fused_attentions
from mla_opt.graphs.torch.graph import TorchGraph
from mla_opt.graphs.torch.lifted_program import LiftedProgram
from mla_opt.graphs.torch.skeleton import skeleton
from mla_opt.handles import Value
from mla_opt.options import Options
from mla_opt.programs.frontends import open_program
from mla_opt.programs.program_options import program_options
from mla_opt.programs.recognize import is_program_file
from mla_opt.programs.saved import describe_program, read_program
from mla_opt.report.inspection import OperatorReport
from mla_opt.report.report import ModelFile, StoredBytes
from mla_opt.sites import LatentAttentionSite

higher_order = torch.ops.higher_order

if TYPE_CHECKING:
    from mla_opt.programs.recognize import Program


class ProgramSubject:
    """An exported program, in a file or not, or a graph module."""

    def __init__(self, model: Program | str | PathLike[str]) -> None:
        self._path = Path(model) if is_program_file(model) else None
        self._saved = None if self._path is None else read_program(self._path)
        self._opened = open_program(cast("Program", self._saved.program if self._saved else model))
        self._program = self._opened.program.clone()
        self._graph = TorchGraph(self._program)

    @property
    def graph(self) -> Graph:
        """The adapter as the protocol."""
        return cast(Graph, self._graph)

    @property
    def has_content(self) -> bool:
        """Whether no stored tensor lies on the meta device."""
        return self._graph.has_content()

    @property
    def optimized_by(self) -> str | None:
        """What torch.export saved with the program."""
        return metadata.by_whom(self._opened.program.metadata)

    def operators(self) -> tuple[OperatorReport, ...]:
        """Read off the nodes, branches included, and what torch.export saved with the program."""
        stored = {
            name: tuple(each.tensor.shape)
            for node, each in self._program.stored.items()
            for name in (node.name, each.name)
        }
        modules = (m for m in self._program.module.modules() if isinstance(m, fx.GraphModule))
        made = {node.name for module in modules for node in module.graph.nodes}
        nodes = fused_attentions(self._program)
        return metadata.operators(self._program.metadata, nodes, stored, made)

    def settle(self, options: Options) -> Options:
        """What of them is for programs."""
        return program_options(options)

    def cautions(self, dtypes: Collection[str]) -> tuple[str, ...]:
        """That the result has conditionals, where the program had none; types need none."""
        if not _has_cond(self._program.module) or _has_cond(self._opened.program.module):
            return ()
        return (
            "the program chooses between two forms by torch.cond; for runtimes that take aten"
            " operators alone, such as ExecuTorch and OpenVINO's PyTorch frontend, use prefill"
            " absorbed",
        )

    def file(self) -> ModelFile | None:
        """Hash and size of the file, where there is one."""
        if self._path is None or self._saved is None:
            return None
        return describe_program(self._path, self._saved.torch_version)

    def interfaces(self) -> tuple[ir.Model, ir.Model]:
        """Inputs and outputs of both."""
        return skeleton(self._opened.program), skeleton(self._program)

    def stored(self) -> StoredBytes:
        """Of the stored tensors of both programs."""
        return StoredBytes(_stored_bytes(self._opened.program), _stored_bytes(self._program))

    def record(self, sites: Sequence[LatentAttentionSite]) -> None:
        """Write it where torch.export saves it with the program."""
        metadata.record(self._program.metadata, sites, self._is_stored)

    def _is_stored(self, value: Value) -> bool:
        return cast(fx.Node, value) in self._program.stored

    def original(self) -> Any:
        """The program as it came."""
        return self._opened.result

    def unchanged(self) -> Any:
        """The program as it came."""
        return self._opened.result

    def result(self) -> Any:
        """A program of the same kind; the very same where nothing was found."""
        if not self._graph.sites:
            return self._opened.result
        return self._opened.rebuilt(self._program).result


def _stored_bytes(program: LiftedProgram) -> int:
    once = {id(each.tensor): each.tensor for each in program.stored.values()}
    return sum(tensor.nbytes for tensor in once.values())


def _has_cond(module: fx.GraphModule) -> bool:
    return bool(module.graph.find_nodes(op="call_function", target=higher_order.cond))
