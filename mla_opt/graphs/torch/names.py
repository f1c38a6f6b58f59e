"""What is new in a PyTorch graph: its names, its stored tensors, its symbols, its submodules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mla_opt.errors import InputError
from mla_opt.graphs.torch.lifted_program import (
    LiftedProgram,
    Stored,
    StoredKind,
    expression,
    is_real,
)


class Names:
    """Adds to one program what its graph refers to by name."""

    def __init__(self, program: LiftedProgram) -> None:
        self._program = program
        self._stored = {stored.name for stored in program.stored.values()}

    @property
    def device(self) -> torch.device:
        """Where the program keeps its tensors; the meta device where one lies there."""
        tensors = [stored.tensor for stored in self._program.stored.values()]
        if any(not is_real(tensor) for tensor in tensors):
            return torch.device("meta")
        return tensors[0].device if tensors else torch.device("cpu")

    def unique(self, name: str) -> str:
        """A name for a node; FX itself tells equal ones apart."""
        return re.sub(r"\W+", "_", name).strip("_")

    def store(self, tensor: torch.Tensor, name: str) -> fx.Node:
        """A new stored tensor, and the placeholder that stands for it."""
        path = self._path(name)
        graph, device = self._program.graph, self.device
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            node = graph.placeholder(self.unique(f"p_{path}"))
        kind: StoredKind = "parameter" if tensor.is_floating_point() else "constant"
        content = tensor.to(device)
        node.meta["val"] = self._program.fake_mode.from_tensor(content, static_shapes=True)
        self._program.stored[node] = Stored(path, kind, content)
        return node

    def _path(self, name: str) -> str:
        """An attribute path that no other tensor has."""
        words = [re.sub(r"\W+", "_", word) for word in re.split(r"[./]", name)]
        base = path = ".".join(words)
        count = 1
        while path in self._stored:
            count += 1
            path = f"{base}_{count}"
        self._stored.add(path)
        return path

    def submodule(self, module: fx.GraphModule, name: str) -> str:
        """Where the program keeps a branch."""
        base = path = self.unique(name)
        count = 1
        while hasattr(self._program.module, path):
            count += 1
            path = f"{base}_{count}"
        self._program.module.add_submodule(path, module)
        return path

    def size(self, size: int | str | None) -> int | torch.SymInt:
        """A declared size as the program's shapes have it.

        Raises:
            InputError: no input of the program has such a size.
        """
        if isinstance(size, int):
            return size
        for node in self._program.graph.nodes:
            for known in _sizes(node.meta.get("val")):
                if str(expression(known)) == size:
                    return known
        raise InputError(f"no input of the program has the size {size!r}")

    def example(
        self, sizes: Sequence[int | torch.SymInt], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """An example value for an input."""
        with self._program.fake_mode:
            return torch.empty(tuple(sizes), dtype=dtype, device=device)


def _sizes(value: Any) -> Sequence[int | torch.SymInt]:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return (value,) if isinstance(value, torch.SymInt) else ()
