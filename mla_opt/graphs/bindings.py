"""Which sizes a graph is looked at with: bindings of its dynamic dims, each made once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Generic, TypeVar

from mla_opt.graphs.interface.interface import Limits, ModelInterface

BindingT = TypeVar("BindingT")
Sizes = tuple[int, int, int]
Shapes = Mapping[str, tuple[int, ...]]


class Bindings(ABC, Generic[BindingT]):
    """What the adapters share: B, S and P fixed to numbers, within what a model's inputs allow."""

    @cached_property
    @abstractmethod
    def interface(self) -> ModelInterface:
        """What the inputs and outputs are for, as the model came."""

    @abstractmethod
    def _bound(self, shapes: Shapes, sizes: Sizes) -> BindingT:
        """A binding with inputs of these shapes, which are those of ``sizes`` = (B, S, P)."""

    @cached_property
    def _limits(self) -> Limits:
        """Sizes that the model fixes."""
        return self.interface.limits()

    @cached_property
    def _bindings(self) -> dict[Sizes, BindingT]:
        return {}

    def nearest_inputs(self, batch: int, query_len: int, past_len: int) -> tuple[Sizes, Shapes]:
        """The sizes nearest to these, and the shapes of the inputs that the model came with."""
        sizes = self._nearest(batch, query_len, past_len)
        return sizes, self.interface.bind(*sizes)

    def nearest_binding(self, batch: int, query_len: int, past_len: int) -> BindingT:
        """Like :meth:`bind`, with the sizes that the model fixes in place of those asked for."""
        return self.bind(*self._nearest(batch, query_len, past_len))

    def bind(self, batch: int, query_len: int, past_len: int) -> BindingT:
        """Fix the dynamic dims of the inputs; kept, since every site asks for the same few."""
        sizes = (batch, query_len, past_len)
        if sizes not in self._bindings:
            self._bindings[sizes] = self._bound(self.interface.bind(*sizes), sizes)
        return self._bindings[sizes]

    def _nearest(self, batch: int, query_len: int, past_len: int) -> Sizes:
        stateful = bool(self.interface.states)
        return self._limits.nearest(batch, query_len, past_len, stateful=stateful)
