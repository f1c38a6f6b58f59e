"""The page itself: templates, one style sheet and four scripts, put into one text."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from mla_opt.errors import InputError, Refusal
from mla_opt.report.page import groups
from mla_opt.report.page.data import PageData
from mla_opt.report.page.layers import Layer
from mla_opt.report.page.proof import read_proof
from mla_opt.report.page.totals import totals
from mla_opt.report.report import OptimizationReport, SiteReport
from mla_opt.report.units import change, duration, quantity
from mla_opt.report.verification import summary

if TYPE_CHECKING:
    from jinja2 import Environment

#: In the order in which they build on each other.
SCRIPTS = ("vendor/libraries.min.js", *(f"assets/{n}.js" for n in ("costs", "drawing", "charts")))
MAIN = "assets/page.js"


def require_jinja() -> None:
    """Raise `InputError` where Jinja is missing, with what installs it."""
    if importlib.util.find_spec("jinja2") is None:
        raise InputError("a page needs jinja2, which is not installed: pip install jinja2")


def render(data: PageData) -> str:
    """Return the page.

    Raises:
        InputError: Jinja is not installed.
    """
    require_jinja()
    scripts = [script_text() + _text(MAIN)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            data=data,
            inspection=data.inspection,
            optimized=data.optimized,
            optimization=data.optimization,
            totals=totals(data),
            refusals=groups.refusals(_refusals(data)),
            proof=_proof(data.optimization),
            json=data.to_json(),
            style=_text("assets/page.css"),
            scripts=scripts,
            policy=_policy(scripts),
        )
    )


@cache
def script_text() -> str:
    """Return the scripts that the page's own stands on, as they stand in a page."""
    return "".join(map(_text, SCRIPTS))


def shown(value: Any) -> Any:
    """Return a value with everything that is no letter, sign or space of a text as an escape.

    Names are of a file that anybody wrote: a sign that turns the direction of writing around makes
    one name look like another.
    """
    if type(value) is not str:  # what is markup already is ours
        return value
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in value)


def _refusals(data: PageData) -> tuple[Refusal, ...]:
    """Of looking and of rewriting, each once."""
    rewriting = () if data.optimization is None else data.optimization.refusals
    return tuple(dict.fromkeys((*data.inspection.refusals, *rewriting)))


def _proof(optimization: OptimizationReport | None) -> Any:
    if optimization is None or optimization.verification is None:
        return None
    return read_proof(optimization.verification)


def _policy(scripts: Sequence[str]) -> str:
    """Say what the browser may do: run these scripts and no others, and fetch nothing at all."""
    hashes = " ".join(f"'sha256-{_sha256(each)}'" for each in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(*name.split("/")).read_text(encoding="utf-8")


def _load(name: str) -> str:
    return _text(f"templates/{name}")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_load),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= _FILTERS
    made.globals |= {"cached": _cached, "layer_cache": _layer_cache}
    return made


def _cached(layer: Layer) -> str:
    """Bytes of a token in the cache of one attention."""
    return _became(layer.cache_bytes_per_token_before, layer.after.cache_bytes_per_token)


def _layer_cache(layers: Sequence[Layer]) -> str:
    """Bytes of a token in all caches together."""
    after = [_rows(each, each.after.cache_bytes_per_token) for each in layers]
    known = [each for each in after if each is not None]
    before = sum(len(each.names) * each.cache_bytes_per_token_before for each in layers)
    return _became(before, sum(known) if len(known) == len(after) else None)


def _rows(layer: Layer, row: int | None) -> int | None:
    return None if row is None else len(layer.names) * row


def _became(before: int, after: int | None) -> str:
    if after is None:
        return f"{quantity(before, 'B')} -> not known"
    return change(before, after, "B") if before or after else "no cache seen"


def _error(value: float | None) -> str:
    return "not measured" if value is None or not math.isfinite(value) else f"{value:.1e}"


def _worst(sites: Sequence[SiteReport]) -> str:
    errors = [site.certificate_error for site in sites]
    known = [error for error in errors if error is not None]
    return _error(max(known)) if known and len(known) == len(errors) else "not finite"


_FILTERS: dict[str, Callable[..., Any]] = {
    "quantity": quantity,
    "duration": duration,
    "change": change,
    "error": _error,
    "summary": summary,
    "alike_reasons": groups.reasons,
    "alike_sites": groups.sites,
    "alike_changes": groups.changes,
    "alike_operators": groups.operators,
    "worst": _worst,
}
