"""A PyTorch graph with fixed input shapes: every shape becomes a number, parts of it can be run.

Exporters note a symbolic shape on every value; fixing the symbols is all that shapes need. A part
is run by PyTorch itself, node by node, on the CPU.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from mla_opt.errors import MlaOptError, require_memory
from mla_opt.graphs.torch.lifted_program import (
    LiftedProgram,
    expression,
    is_real,
    symbolic_shape,
)
from mla_opt.graphs.torch.values import Literal, to_array, to_tensor
from mla_opt.handles import Array


class UnboundError(MlaOptError):
    """A part of a graph depends on the data of something outside it, or cannot be run alone."""


class TorchBinding:
    """The graph of a program under fixed input shapes."""

    def __init__(
        self,
        program: LiftedProgram,
        input_shapes: Mapping[str, Sequence[int]],
        sizes: tuple[int, int, int],
    ) -> None:
        self.sizes = sizes
        self._program = program
        self._symbols: dict[Any, sympy.Integer] = {}
        self._known: dict[Any, int | None] = {}
        for node in program.inputs:
            self._bind(symbolic_shape(node) or (), input_shapes.get(node.name, ()))
        for node in program.counts:  # where rows begin, if it is anything that sizes depend on
            self._bind((expression(node.meta["val"]),), (sizes[2],))

    def _bind(self, stated: Sequence[Any], given: Sequence[int]) -> None:
        """Take the values of single symbols from one input."""
        for size, number in zip(stated, given):
            if getattr(size, "is_Symbol", False):
                self._symbols.setdefault(size, sympy.Integer(number))

    def shape(self, value: fx.Node) -> tuple[int, ...] | None:
        """Shape under this binding; ``None`` for what is no tensor, or has a size of its own."""
        if isinstance(value, Literal):
            return ()
        stated = symbolic_shape(value)
        sizes = () if stated is None else tuple(map(self._number, stated))
        known = tuple(size for size in sizes if size is not None)
        return known if stated is not None and len(known) == len(sizes) else None

    def _number(self, size: Any) -> int | None:
        if isinstance(size, int):
            return size
        if size not in self._known:
            value = size.xreplace(self._symbols)
            self._known[size] = int(value) if value.is_number else None
        return self._known[size]

    def repeated(self) -> TorchBinding:
        """Itself: a run needs no preparation."""
        return self

    def run(self, outputs: Sequence[fx.Node], feeds: Mapping[fx.Node, Array]) -> list[Array]:
        """Run the nodes between ``feeds`` and ``outputs``."""
        part = _Part(self, {value: to_tensor(array) for value, array in feeds.items()})
        with torch.no_grad():
            return [to_array(part.value(output)) for output in outputs]

    def size(self, node: fx.Node) -> int:
        """The number that a node counts."""
        number = self._number(expression(node.meta["val"]))
        if number is None:
            raise UnboundError(f"{node.name} counts something that depends on data")
        return number


class _Part:
    """The nodes between some fed values and some outputs, each run once."""

    def __init__(self, binding: TorchBinding, fed: dict[fx.Node, torch.Tensor]) -> None:
        self._binding = binding
        self._values: dict[fx.Node, Any] = dict(fed)

    def value(self, node: fx.Node) -> torch.Tensor:
        """The tensor that a node makes; what it needs is run first."""
        pending = [node]
        while pending:
            current = pending[-1]
            missing = [each for each in self._needs(current) if each not in self._values]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            if current not in self._values:
                self._values[current] = self._run(current)
        result: torch.Tensor = self._values[node]
        return result

    def _needs(self, node: fx.Node) -> Sequence[fx.Node]:
        """What a node has to be given; sizes are known without running anything."""
        counts = isinstance(node.meta.get("val"), (int, torch.SymInt))
        return () if counts or node in self._values else node.all_input_nodes

    def _run(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return self._binding.size(node)
        stored = self._binding._program.stored.get(node)
        if stored is not None:
            return _content(stored.tensor, stored.name)
        if node.op != "call_function":
            raise UnboundError(f"{node.name} is an input that this part must not depend on")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        try:
            return node.target(*args, **_on_cpu(kwargs))  # type: ignore[operator]
        except Exception as error:  # whatever PyTorch's operators raise
            require_memory(error)
            reason = " ".join(str(error).split())[:200]
            raise UnboundError(f"PyTorch cannot run {node.name} alone: {reason}") from error


def _content(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A stored tensor on the CPU; random numbers, always the same, where it has no content."""
    if is_real(tensor):
        return tensor.detach().cpu()
    seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if not tensor.dtype.is_floating_point:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.randn(tensor.shape, generator=seed).to(tensor.dtype)


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator that makes a tensor, for a run on the CPU."""
    return {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") else kwargs
