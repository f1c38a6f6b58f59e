"""What verification asks of a model, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt
import onnx_ir as ir

from mla_opt.errors import MlaOptError
from mla_opt.verification.breakable import Breakable

Array = npt.NDArray[Any]


class RunError(MlaOptError):
    """A runtime refused to load or to run a model."""


class Running(Protocol):
    """A loaded model."""

    @property
    def label(self) -> str:
        """How messages call it."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises `RunError`."""


class Runnable(Protocol):
    """A model to look into and to run."""

    @property
    def label(self) -> str:
        """How messages call it."""

    @property
    def model(self) -> ir.Model:
        """Its inputs, outputs and metadata, and the wiring between them."""

    def session(self, optimized: bool = True) -> Running:
        """Load it, with or without the runtime's own optimizations. Raises `RunError`."""

    @property
    def narrow(self) -> bool:
        """Whether it computes in a type that the runtime does not, bfloat16."""

    def twin(self, wide: bool = False, rows: bool = False) -> Runnable:
        """The model with its activations in floating point; itself where nothing rounds them.

        ``wide``: what is bfloat16 is float32, too. ``rows``: so are latent rows kept in codes.
        """

    def with_weights_of(self, other: Runnable) -> tuple[Runnable, int]:
        """The model with the layers that are quantized in the other, and how many those are."""

    def breakable(self) -> Breakable:
        """The model, to be copied and broken."""

    def broken(self, label: str, model: Breakable) -> Runnable:
        """A broken copy, to be run."""
