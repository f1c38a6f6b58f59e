"""`load_program`: a saved program, and what its inputs and outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mla_opt import metadata
from mla_opt.errors import InputError, require_memory
from mla_opt.graphs.interface.decoding import can_pad, logits_port, token_port, vocabulary_of
from mla_opt.graphs.interface.interface import ModelInterface, Port
from mla_opt.graphs.torch.skeleton import skeleton
from mla_opt.programs.calling import Entrance
from mla_opt.programs.frontends import open_program
from mla_opt.programs.saved import read_program
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.oracle import optimized_driver
from mla_opt.verification.running import RunError

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program that can be run: token ids in, logits out, states from call to call.

    Attributes:
        label: how messages call it.
        interface: what it is fed and hands back, by the names of `entrance`.
        tokens: its input for ids.
        logits: its output for them.
        entrance: how it is called.
        module: what is called.
    """

    label: str
    interface: ModelInterface
    tokens: Port
    logits: Port
    entrance: Entrance
    module: torch.nn.Module

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids, if it is known."""
        return vocabulary_of(self.interface, self.logits)

    @property
    def can_pad(self) -> bool:
        """Whether rows of one batch may differ in length."""
        return can_pad(self.interface)

    def run(self, feeds: Mapping[str, torch.Tensor]) -> Tensors:
        """Return every output by name. Raises `RunError`."""
        try:
            return self.entrance.call(self.module, feeds)
        except Exception as error:  # whatever PyTorch's operators and guards raise
            require_memory(error)
            reason = " ".join(str(error).split())[:400]
            raise RunError(f"{self.label}: PyTorch does not run it: {reason}") from error


def load_program(path: Path) -> LoadedProgram:
    """Open a program that `mla-opt optimize` wrote.

    Raises:
        InputError: it cannot be loaded, was not optimized, or is no decoder with a cache.
    """
    saved, label = read_program(path), str(path)
    opened = open_program(saved.program)
    if metadata.by_whom(opened.program.metadata) is None:
        raise InputError(f"{label}: is no optimized program; run `mla-opt optimize` on it first")
    drawn = skeleton(opened.program)
    interface = optimized_driver(drawn, InterfaceMap.of(drawn)).interface
    tokens, logits = token_port(interface, label), logits_port(interface, label)
    return LoadedProgram(label, interface, tokens, logits, opened.entrance, opened.module())
