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
from mla_opt.graphs.torch.lifted_program import LiftedProgram, Stored, is_real
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
        if site.kv_b is not None:
            return site.num_heads
        return int(self._stored(site)[1].tensor.shape[0])

    def heads_are_alike(self, site: SiteRecord) -> bool:
        """Whether every head has the same W_UK, as where it was absorbed by hand."""
        weight = self._by_head(site)[0]
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
        node, stored = self._stored(site)
        weight, rest = self._by_head(site)
        rolled = torch.cat([weight.roll(1, 0), rest], dim=1).view(stored.tensor.shape)
        self.program.stored[node] = replace(stored, tensor=rolled)

    def _by_head(self, site: SiteRecord) -> tuple[torch.Tensor, torch.Tensor]:
        """W_UK of each head, ``[H, N, C]``, and the rows of each that are stored behind it."""
        tensor = self._stored(site)[1].tensor
        if site.kv_b is None:
            return tensor, tensor[:, :0]
        assert site.num_heads is not None and site.qk_nope_head_dim is not None
        by_head = tensor.view(site.num_heads, -1, tensor.shape[1])
        return by_head[:, : site.qk_nope_head_dim], by_head[:, site.qk_nope_head_dim :]

    def _stored(self, site: SiteRecord) -> tuple[fx.Node, Stored]:
        """What W_UK is stored in, and its placeholder.

        Programs that were optimized store no scales beside it.
        """
        name, rank = (site.w_uk, 3) if site.kv_b is None else (site.kv_b, 2)
        for node, stored in self.program.stored.items():
            if name in (node.name, stored.name) and stored.tensor.dim() == rank:
                return node, stored
        raise InputError(
            f"{METADATA_KEY}: site {site.name!r} names {name!r}, which is no stored tensor of"
            f" {rank} dimensions"
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
