"""Telling PyTorch programs, and files of them, from other models without importing PyTorch."""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    Program = ExportedProgram | GraphModule


PROGRAM_SUFFIX = ".pt2"
"""What `torch.export.save` and `torch.export.load` ask the name of a file to end in."""


def is_program_file(model: object) -> TypeGuard[str | PathLike[str]]:
    """Whether this is a path whose name says that a program is there."""
    return isinstance(model, str | PathLike) and Path(model).suffix.lower() == PROGRAM_SUFFIX


def is_program(model: object) -> TypeGuard[Program]:
    """Whether this is an exported program or a graph module; who has one has imported PyTorch."""
    if "torch" not in sys.modules:
        return False
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    return isinstance(model, (ExportedProgram, GraphModule))
