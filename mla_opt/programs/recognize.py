"""Telling PyTorch programs from other models without importing PyTorch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    Program = ExportedProgram | GraphModule


def is_program(model: object) -> TypeGuard[Program]:
    """Whether this is an exported program or a graph module; who has one has imported PyTorch."""
    if "torch" not in sys.modules:
        return False
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    return isinstance(model, (ExportedProgram, GraphModule))
