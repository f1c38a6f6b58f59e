"""Breaking a PyTorch program on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from mla_opt.errors import InputError
from mla_opt.graphs.torch.lifted_program import LiftedProgram, is_real
from mla_opt.graphs.torch.order import in_order
from mla_opt.verification.site_records import METADATA_KEY, SiteRecord

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class BreakableProgram:
    """A lifted program."""

    program: LiftedProgram

    def clone(self) -> BreakableProgram:
        """A copy that shares the stored tensors, branches included."""
        return BreakableProgram(self.program.clone())

    def lost_query(self, site: SiteRecord) -> str | None:
        """Nothing changes a program after it was optimized."""
        return None

    def lost_w_uk(self, site: SiteRecord) -> str | None:
        """Nothing changes a program after it was optimized."""
        return None

    def heads(self, site: SiteRecord) -> int | None:
        """H of the stored W_UK."""
        return int(self.program.stored[self._weight(site)].tensor.shape[0])

    def heads_are_alike(self, site: SiteRecord) -> bool:
        """Whether every head has the same W_UK, as where it was absorbed by hand."""
        weight = self.program.stored[self._weight(site)].tensor
        return is_real(weight) and bool((weight == weight[:1]).all())

    def scale_query(self, site: SiteRecord, factor: float) -> None:
        """Multiply the absorbed query."""
        self._splice(site, lambda graph, query: self._emit(graph, aten.mul.Tensor, (query, factor)))

    def reorder_query(self, site: SiteRecord, order: npt.NDArray[Any]) -> None:
        """Put slices of the last axis of the absorbed query together."""
        runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)

        def reordered(graph: fx.Graph, query: fx.Node) -> fx.Node:
            pieces = [
                self._emit(graph, aten.slice.Tensor, (query, -1, int(run[0]), int(run[-1]) + 1))
                for run in runs
            ]
            return self._emit(graph, aten.cat.default, (pieces, -1))

        self._splice(site, reordered)

    def shift_heads(self, site: SiteRecord) -> None:
        """Roll W_UK by one along its heads."""
        node = self._weight(site)
        stored = self.program.stored[node]
        self.program.stored[node] = replace(stored, tensor=stored.tensor.roll(1, 0))

    def _weight(self, site: SiteRecord) -> fx.Node:
        """The placeholder of W_UK."""
        for node, stored in self.program.stored.items():
            if site.w_uk in (node.name, stored.name) and stored.tensor.dim() == 3:
                return node
        raise InputError(
            f"{METADATA_KEY}: site {site.name!r} names w_uk {site.w_uk!r}, which is no stored"
            " tensor of three dimensions"
        )

    def _emit(self, graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
        """One node, with an example value."""
        node = graph.call_function(target, args)
        with self.program.fake_mode, torch.no_grad():
            node.meta["val"] = target(*fx.node.map_arg(args, lambda each: each.meta["val"]))
        return node

    def _splice(self, site: SiteRecord, make: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
        """Put what ``make`` emits between the absorbed query and all that read it."""
        found = False
        for module in self.program.module.modules():
            if not isinstance(module, fx.GraphModule):
                continue
            for query in [node for node in module.graph.nodes if node.name == site.query]:
                found = True
                readers = list(query.users)
                with module.graph.inserting_after(query):
                    broken = make(module.graph, query)
                for reader in readers:
                    reader.replace_input_with(query, broken)
                in_order(module.graph)
                module.recompile()
        if not found:
            raise InputError(
                f"{METADATA_KEY}: site {site.name!r} names query {site.query!r}, which no node of"
                " the program makes"
            )
