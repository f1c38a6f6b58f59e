"""What has to be run to show that two models compute the same: the regions in which they differ.

Outputs are walked back through what is the same in both. Where a value is only assumed to be the
same, or a cache has changed, its region is what makes it, back to data that both models have: rows
of hidden states, queries, latent rows. Masks, positions and sizes are computed inside each region,
from the inputs of the model. Regions that share a node that computes with data are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.verification.interface_map import InterfaceMap, StateMap
from mla_opt.verification.onnx.layers.content import read_by
from mla_opt.verification.onnx.layers.correspondence import Correspondence, Kind, Side

Values = dict[ir.Value, None]
"""An ordered set."""


@dataclass(eq=False)
class Region:
    """What has to be the same in both: ``names`` of values, and caches that have changed.

    ``ends`` are the data that both models have and the region begins with, ``inputs`` what it reads
    of the models' own inputs, each by model; ``nodes`` compute with data.
    """

    names: list[str] = field(default_factory=list)
    states: list[StateMap] = field(default_factory=list)
    ends: dict[Side, Values] = field(default_factory=dict)
    inputs: dict[Side, Values] = field(default_factory=dict)
    nodes: set[ir.Node] = field(default_factory=set)

    def joined_with(self, other: Region) -> Region:
        """What has to be shown of both."""
        names = [*self.names, *(name for name in other.names if name not in self.names)]
        states = [*self.states, *(state for state in other.states if state not in self.states)]
        return Region(names, states)


@dataclass(eq=False)
class _Walk:
    found: Correspondence
    changes: InterfaceMap
    counted: frozenset[str]
    regions: list[Region] = field(default_factory=list)
    seen: set[ir.Value] = field(default_factory=set)
    sizes: list[str] = field(default_factory=list)

    def outputs(self) -> None:
        """Walk back from every output of the models."""
        before, after = self.found.sides
        mapped = {name for each in self.changes.states for name in each.original.outputs}
        made = {output.name: output for output in after.model.graph.outputs}
        for state in self.changes.states:
            self._add(Region(states=[state]))
        for output in before.model.graph.outputs:
            if output.name in mapped:
                continue
            other = made.get(output.name)
            if other is None or self._kind(before, output) != self._kind(after, other):
                raise InputError(
                    f"output {output.name!r} is not of one type and shape in both models, so they"
                    " cannot be compared layer by layer; compare them whole"
                )
            self._back(before, output)

    def _back(self, side: Side, value: ir.Value) -> None:
        """Through what is the same in both, down to what is assumed."""
        pending = [value]
        while pending:
            current = side.plain(pending.pop())
            if current in self.seen:
                continue
            self.seen.add(current)
            name = self._assumed(side, current)
            if name is not None:
                self._show(side, current, name)
            elif (node := current.producer()) is not None:
                pending.extend(read_by(node))

    def _assumed(self, side: Side, value: ir.Value) -> str | None:
        """The name of a value that is assumed to be the same."""
        name = value.name or ""
        return name if name in self.found.assumed and side.values.get(name) is value else None

    def _show(self, side: Side, value: ir.Value, name: str) -> None:
        if value in side.data:
            self._add(Region(names=[name]))
        else:
            self.sizes.append(name)

    def _add(self, region: Region) -> None:
        self.regions.append(region)
        self._begin(region)

    def sizes_too(self) -> None:
        """What is assumed of masks, positions and sizes is shown with the first of the regions."""
        shown: set[str] = set()
        while names := [name for name in dict.fromkeys(self.sizes) if name not in shown]:
            shown.update(names)
            if not self.regions:
                self.regions.append(Region())
            first = self.regions[0]
            first.names += names
            self._begin(first)

    def _begin(self, region: Region) -> None:
        """Follow a region, and walk back from what it begins with: that is to be shown as well."""
        self._follow(region)
        for side in self.found.sides:
            for end in region.ends[side]:
                self._back(side, end)

    def _follow(self, region: Region) -> None:
        for side in self.found.sides:
            region.ends[side], region.inputs[side] = {}, {}
            self._cone(side, self._roots(side, region), region)

    def merged(self) -> list[Region]:
        """Regions that share no node that computes with data.

        What is to be shown of one is never given to it: regions that are one are followed anew.
        """
        merged: list[Region] = []
        pending = list(self.regions)
        while pending:
            region = pending.pop()
            others = [each for each in merged if not region.nodes.isdisjoint(each.nodes)]
            if not others:
                merged.insert(0, region)
                continue
            for each in others:
                merged.remove(each)
                region = each.joined_with(region)
            self._follow(region)
            pending.append(region)
        return merged

    def _roots(self, side: Side, region: Region) -> list[ir.Value]:
        own = 0 if side is self.found.before else 1
        ends = [(state.original, state.optimized)[own] for state in region.states]
        names = (*region.names, *(name for each in ends for name in each.outputs))
        return [side.values[name] for name in names]

    def _cone(self, side: Side, roots: Iterable[ir.Value], region: Region) -> None:
        pending, seen = list(roots), set(roots)
        first = set(pending)
        while pending:
            value = pending.pop()
            node = value.producer()
            if node is None:
                if value.is_graph_input() and value.const_value is None:
                    region.inputs[side][value] = None
            elif value not in first and self._is_end(side, value):
                region.ends[side][value] = None
            else:
                if value in side.data:
                    region.nodes.add(node)
                operands = [each for each in read_by(node) if each not in seen]
                seen.update(operands)
                pending.extend(operands)

    def _is_end(self, side: Side, value: ir.Value) -> bool:
        """Whether a value is data that both models have, with an axis for each new token."""
        if value not in side.data or self._kind(side, value) not in self.found.common:
            return False
        shape, kind = self.found.shape(side, value), self.found.element_type(side, value)
        if shape is None or kind is None or not kind.is_floating_point():
            return False
        symbols = [str(size) for size in shape if not isinstance(size, int)]
        return len(symbols) == len(set(symbols)) and self.counted == frozenset(symbols)

    def _kind(self, side: Side, value: ir.Value) -> Kind | None:
        return self.found.kind(side, value)


def regions(found: Correspondence, changes: InterfaceMap) -> list[Region]:
    """Every region in which the models differ.

    Raises:
        InputError: an output cannot be compared, or tokens are not counted by symbols.
    """
    tokens = found.before.interface.tokens
    if tokens is None:
        raise InputError("no input carries the tokens, so the models cannot be taken apart")
    symbols = frozenset(size for size in tokens.sizes[:2] if isinstance(size, str))
    walk = _Walk(found, changes, symbols)
    walk.outputs()
    walk.sizes_too()
    return walk.merged()
