"""What the values of a graph over packed tokens are: the same for all, a count, or of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.integers import Entries
from mla_opt.graphs.sizes import Expression

Kind = Literal["same", "count", "cache"]


@dataclass(frozen=True, slots=True)
class Along:
    """A value with ``inner`` rows for each token along ``axis``, those of one token together."""

    axis: int
    inner: int = 1


State = Kind | Along


class MixedTokensError(Exception):
    """Something brings tokens together, or cannot be told not to; says in words what."""


@dataclass(slots=True)
class TokenWalk:
    """What is known of the values of a graph whose inputs have ``tokens`` on one axis each."""

    graph: OnnxGraph
    tokens: Expression
    states: dict[ir.Value, State] = field(default_factory=dict)

    def state(self, value: ir.Value) -> State:
        """What a value is; inputs and stored tensors by their shapes."""
        known = self.states.get(value)
        if known is None:
            known = self.states[value] = self.by_shape(value) or "same"
        return known

    def by_shape(self, value: ir.Value) -> Along | None:
        """The axis of a value that has the size of the tokens; ``None``: it has no such axis.

        Raises:
            MixedTokensError: it has several, or one of another size that varies.
        """
        found: Along | None = None
        for axis, size in enumerate(self.shape(value)):
            if isinstance(size, int):
                continue
            inner = sizes.quotient(size, self.tokens)
            if found is not None or not isinstance(inner, int):
                raise MixedTokensError(f"{value.name} has an axis that is not one of the tokens")
            found = Along(axis, inner)
        return found

    def shape(self, value: ir.Value) -> tuple[Expression, ...]:
        """Sizes of a value. Raises `MixedTokensError` where they are not known."""
        known = self.graph.sizes(value)
        if known is None:
            raise MixedTokensError(f"the shape of {value.name} is not known")
        return known

    def along(self, value: ir.Value) -> Along | None:
        """The axis of a value's tokens; ``None`` where it is the same for all.

        Raises:
            MixedTokensError: it is a count, or a cache, and used as data.
        """
        state = self.state(value)
        if state == "cache":
            raise MixedTokensError(f"{value.name} holds rows of all tokens")
        if state == "count":
            raise MixedTokensError(
                f"{value.name} follows from how many tokens there are, not from a token"
            )
        return state if isinstance(state, Along) else None

    def is_number(self, value: ir.Value) -> bool:
        """Whether a value holds stored integers, or such as follow from fixed sizes."""
        content = self.graph.integers(value)
        if not isinstance(content, Entries):
            return False
        return all(isinstance(each, bool | int) for each in content.array.reshape(-1))
