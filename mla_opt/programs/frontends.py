"""Programs as they come, opened: the lifted form, how to call them, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx
from torch.export import ExportedProgram

from mla_opt.errors import InputError
from mla_opt.graphs.torch.lifted_program import LiftedProgram
from mla_opt.programs import calling, from_exported, from_module, to_exported, to_module
from mla_opt.programs.calling import Entrance
from mla_opt.programs.dynamo import own_tensors
from mla_opt.programs.recompose import recompose
from mla_opt.programs.row_writes import unify_writes

if TYPE_CHECKING:
    from mla_opt.programs.recognize import Program


class Opened(Protocol):
    """An opened program; nothing of it is changed by what is done to its lifted form's copies."""

    @property
    def program(self) -> LiftedProgram:
        """The lifted form."""

    @property
    def entrance(self) -> Entrance:
        """How it is called."""

    def module(self) -> torch.nn.Module:
        """The program itself, to be called."""

    def rebuilt(self, program: LiftedProgram) -> Opened:
        """The same kind of program of a rewritten lifted form."""

    @property
    def result(self) -> Any:
        """The program, as it came or as it was rebuilt."""


@dataclass(frozen=True, slots=True)
class OpenedExport:
    """An exported program."""

    result: ExportedProgram
    source: ExportedProgram
    program: LiftedProgram
    entrance: Entrance

    @classmethod
    def of(cls, exported: ExportedProgram) -> OpenedExport:
        """Open one. Raises `InputError` if it cannot be made functional."""
        program, source = from_exported.lifted(exported)
        recompose(program)
        unify_writes(program)
        return cls(exported, source, program, calling.of_exported(source, program))

    def module(self) -> torch.nn.Module:
        """The program itself."""
        return self.result.module()

    def rebuilt(self, program: LiftedProgram) -> OpenedExport:
        """An exported program again."""
        copy = program.clone()
        result = to_exported.exported(copy, self.source)
        return OpenedExport(result, self.source, program, calling.of_exported(result, copy))


@dataclass(frozen=True, slots=True)
class OpenedModule:
    """A graph module of torch.export or torch.compile."""

    result: fx.GraphModule
    source: from_module.LiftedModule
    entrance: Entrance

    @property
    def program(self) -> LiftedProgram:
        """The lifted form."""
        return self.source.program

    @classmethod
    def of(cls, module: fx.GraphModule) -> OpenedModule:
        """Open one. Raises `InputError` if it has no shapes or cannot be made functional."""
        source = from_module.lifted(module, own_tensors(module))
        recompose(source.program)
        unify_writes(source.program)
        return cls(module, source, calling.of_module(source.program, module, source.own))

    def module(self) -> torch.nn.Module:
        """The graph module itself."""
        return self.result

    def rebuilt(self, program: LiftedProgram) -> OpenedModule:
        """A graph module again."""
        source = replace(self.source, program=program.clone())
        result = to_module.graph_module(source)
        return OpenedModule(result, source, calling.of_module(program, result, self.source.own))


def open_program(model: Program) -> Opened:
    """Open a program of either kind.

    Raises:
        InputError: it is no program that can be looked into.
    """
    if isinstance(model, ExportedProgram):
        return OpenedExport.of(model)
    if isinstance(model, fx.GraphModule):
        return OpenedModule.of(model)
    raise InputError(
        f"a {type(model).__name__} is no exported program or graph module; export it first with"
        " torch.export.export"
    )
