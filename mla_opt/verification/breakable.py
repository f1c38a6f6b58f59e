"""What a negative control may do to a model, whatever represents it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from mla_opt.verification.site_records import SiteRecord


class Breakable(Protocol):
    """A model to be broken at the values that its site records name.

    Everything raises `InputError` where a record names what the model does not have.
    """

    def clone(self) -> Breakable:
        """A copy, to be broken in place."""

    def lost_query(self, site: SiteRecord) -> str | None:
        """Why there is no absorbed query to break, though its record is right."""

    def lost_w_uk(self, site: SiteRecord) -> str | None:
        """Why there is no stored W_UK to break, though its record is right."""

    def heads(self, site: SiteRecord) -> int | None:
        """H of the stored W_UK; ``None`` where the model does not say."""

    def heads_are_alike(self, site: SiteRecord) -> bool:
        """Whether every head has the same W_UK, as where it was absorbed by hand."""

    def scale_query(self, site: SiteRecord, factor: float) -> None:
        """Multiply the absorbed query."""

    def reorder_query(self, site: SiteRecord, order: npt.NDArray[Any]) -> None:
        """Let the absorbed query have these of its own dims."""

    def shift_heads(self, site: SiteRecord) -> None:
        """Give every head the W_UK of the one before it."""
