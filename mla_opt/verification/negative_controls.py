"""Copies of the optimized model with one thing wrong, which verification must notice.

A parity check that passes says nothing until it is known to fail where it should. Each control
breaks every site at once, at the values that ``mla_opt.sites`` names::

    scale    query ── times 1/√(C+R) / scale ──> attention   the operator's default scale
    rope     query ── halves of R swapped ──> attention      the other rotary layout
    heads    w_uk [H, N, C] rolled by one along H            a neighbour's matrix

Nothing else is needed, so that it makes no difference whether the operator is fused or inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mla_opt.verification.breakable import Breakable
from mla_opt.verification.site_records import METADATA_KEY, SiteRecord

#: Nearer to the operator's default than this, the right scale is the wrong one.
SAME_SCALE = 1e-3


@dataclass(frozen=True, slots=True)
class Control:
    """One way to break a site.

    Attributes:
        name: short and stable.
        breaks: what it breaks, in one phrase.
        obstacle: why it does not apply to a site, or ``None``.
        apply: break the site in place.
    """

    name: str
    breaks: str
    obstacle: Callable[[Breakable, SiteRecord], str | None]
    apply: Callable[[Breakable, SiteRecord], None]


@dataclass(frozen=True, slots=True)
class ControlResult:
    """What became of one control.

    Attributes:
        applicable: whether there was a site to break.
        detected: whether verification failed, as it must.
        relative: the largest error it caused, relative to the spread.
        reason: why it did not apply or was not detected.
    """

    name: str
    breaks: str
    applicable: bool
    detected: bool
    sites: int = 0
    relative: float | None = None
    output: str | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was missed."""
        return self.detected or not self.applicable

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the verdict, for JSON."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A control and the model it made, or why there is none."""

    control: Control
    model: Breakable | None
    sites: int = 0
    reason: str = ""

    def inapplicable(self) -> ControlResult:
        """Return the result of a control without a model."""
        control = self.control
        return ControlResult(control.name, control.breaks, False, False, reason=self.reason)


def broken_models(model: Breakable, sites: Sequence[SiteRecord]) -> Iterator[BrokenModel]:
    """Yield each control's copy of ``model``, one at a time.

    Raises `InputError` where a site names a value that the model does not have.
    """
    for control in CONTROLS:
        yield _broken(control, model, sites)


def _broken(control: Control, model: Breakable, sites: Sequence[SiteRecord]) -> BrokenModel:
    if not sites:
        return BrokenModel(control, None, reason=f"{METADATA_KEY} names no absorbed attention")
    obstacles = {site.name: control.obstacle(model, site) for site in sites}
    fit = [site for site in sites if obstacles[site.name] is None]
    reasons = sorted({reason for reason in obstacles.values() if reason is not None})
    if not fit:
        return BrokenModel(control, None, reason="; ".join(reasons))
    copy = model.clone()
    for site in fit:
        control.apply(copy, site)
    return BrokenModel(control, copy, len(fit))


def _scale_obstacle(model: Breakable, site: SiteRecord) -> str | None:
    if site.scale == 0:
        return "the scale is 0: no factor makes another of it"
    if abs(site.default_scale / site.scale - 1) < SAME_SCALE:
        return "the scale is 1/sqrt(C + R) itself"
    return model.lost_query(site)


def _scale(model: Breakable, site: SiteRecord) -> None:
    model.scale_query(site, site.default_scale / site.scale)


def _rope_obstacle(model: Breakable, site: SiteRecord) -> str | None:
    if site.qk_rope_head_dim < 2:
        return f"there are no rope halves to swap, R = {site.qk_rope_head_dim}"
    return model.lost_query(site)


def _rope(model: Breakable, site: SiteRecord) -> None:
    start, rope = site.rope_start, site.qk_rope_head_dim
    halves = start + np.roll(np.arange(rope), -(rope // 2))
    model.reorder_query(site, np.concatenate([np.arange(start), halves]))


def _heads_obstacle(model: Breakable, site: SiteRecord) -> str | None:
    if site.w_uk is None and site.kv_b is None:
        return "W_UK is folded into the query projection"
    if (lost := model.lost_w_uk(site)) is not None:
        return lost
    if model.heads(site) == 1:
        return "there is one head only"
    return "all heads have the same W_UK" if model.heads_are_alike(site) else None


def _heads(model: Breakable, site: SiteRecord) -> None:
    model.shift_heads(site)


CONTROLS: tuple[Control, ...] = (
    Control("scale", "the softmax scale is 1/sqrt(C + R)", _scale_obstacle, _scale),
    Control("rope", "the rotary halves of the query are swapped", _rope_obstacle, _rope),
    Control("heads", "every head has its neighbour's W_UK", _heads_obstacle, _heads),
)
