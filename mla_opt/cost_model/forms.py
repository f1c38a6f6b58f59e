"""The forms that are compared."""

from __future__ import annotations

from typing import Literal

from mla_opt.sites import CacheFamily

CostForm = Literal["factored", "fold-q", "fold-o", "fold", "expanded", "expanded-cache"]
AbsorbedForm = Literal["factored", "fold-q", "fold-o", "fold"]

COST_FORMS: tuple[CostForm, ...] = (
    "factored",
    "fold-q",
    "fold-o",
    "fold",
    "expanded",
    "expanded-cache",
)

FOLDS_QUERY = ("fold-q", "fold")
FOLDS_OUTPUT = ("fold-o", "fold")


def form_before(family: CacheFamily) -> CostForm:
    """Return the form of a model as exported, by what it caches."""
    return "expanded-cache" if family == "expanded" else "expanded"
