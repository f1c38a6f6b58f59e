"""States that a program changes in place: which of them may become others."""

from __future__ import annotations

import torch
from torch import fx

from mla_opt.graphs.torch.lifted_program import LiftedProgram, is_real


def why_it_stays(program: LiftedProgram, value: fx.Node) -> str:
    """Why an input cannot hold something else from now on, in words; empty if it can.

    Latent rows that are zeros expand to keys and values that are: of other numbers nothing is
    known of which rows they would be.
    """
    if value not in program.changed:
        return ""
    if not program.movable:
        return "the program changes it in place, and who calls it holds it as it is"
    content = program.changed[value]
    if content is None:
        return ""
    if not is_real(content):
        return "it has no content, so that it begins as zeros cannot be told"
    return "it does not begin as zeros" if bool(content.any()) else ""


def take_place(program: LiftedProgram, old: fx.Node, new: fx.Node) -> None:
    """Let a placeholder be a changed state in the place of another, with zeros if it is kept."""
    program.changed = {
        (new if state is old else state): _zeros(new, content) if state is old else content
        for state, content in program.changed.items()
    }


def _zeros(state: fx.Node, like: torch.Tensor | None) -> torch.Tensor | None:
    """What the program keeps of a state at first; ``None`` where a caller gives it."""
    if like is None:
        return None
    example = state.meta["val"]
    return torch.zeros(tuple(example.shape), dtype=example.dtype, device=like.device)
