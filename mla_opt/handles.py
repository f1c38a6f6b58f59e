"""What everything holds of a graph without asking it anything: its values, its nodes, arrays.

Values and nodes are the objects of whatever representation the graph has, opaque here: they compare
by identity and have a name. Everything else is asked of the graph
(:mod:`mla_opt.graphs.protocol`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class Value(Protocol):
    """A handle of a tensor in a graph."""

    @property
    def name(self) -> str | None:
        """Name within the graph."""


class Node(Protocol):
    """A handle of an operation in a graph."""

    @property
    def name(self) -> str | None:
        """Name within the graph."""
