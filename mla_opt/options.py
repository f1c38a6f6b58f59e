"""What a user may ask of an optimization, checked, and the pipeline that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from mla_opt import passes
from mla_opt.errors import InputError
from mla_opt.pipeline import Pass, Pipeline
from mla_opt.sites import PrefillForm

Target = Literal["onnxruntime", "portable"]
CacheType = Literal["keep", "float16", "bfloat16"]
Absorb = Literal["auto", "factored", "fold-q", "fold-o", "fold", "none"]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one optimization.

    Attributes:
        target: ``onnxruntime`` for the fused operator with its body, ``portable`` for standard
            operators only.
        absorb: what becomes of W_UK and W_UV; ``auto`` asks the cost model.
        cache: ``keep``, ``packed``, ``static`` or ``static:CAPACITY``.
        prefill: the form for long queries.
        cache_type: what the rows of a float32 model's cache are rounded to.
        passes: names of passes to run instead of the default ones.
    """

    target: Target = "onnxruntime"
    absorb: Absorb = "auto"
    cache: str = "keep"
    prefill: PrefillForm = "auto"
    cache_type: CacheType = "keep"
    passes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        kinds = {
            "target": Target,
            "absorb": Absorb,
            "prefill": PrefillForm,
            "cache_type": CacheType,
        }
        for name, kind in kinds.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}, not {_listed(allowed)}")
        if self.cache_mode()[0] == "static" and self.absorb == "none":
            raise InputError("cache static needs absorbed attention; absorb is 'none'")
        if self.cache_type != "keep" and self.absorb == "none":
            raise InputError(f"cache type {self.cache_type} needs absorbed attention, not 'none'")

    def cache_mode(self) -> tuple[str, int | None]:
        """The cache mode, and the capacity where one is given."""
        mode, _, capacity = self.cache.partition(":")
        if mode not in ("keep", "packed", "static") or (capacity and mode != "static"):
            raise InputError(f"cache is {self.cache!r}, not keep, packed, static or static:ROWS")
        if ":" in self.cache and (not capacity.isdecimal() or not int(capacity)):
            raise InputError(f"cache is {self.cache!r}: the capacity is not a number of rows")
        return mode, int(capacity) if capacity else None

    def pipeline(self) -> Pipeline:
        """The passes to run, with their options."""
        names = self.passes
        if names is None:
            static = self.cache_mode()[0] == "static"
            names = passes.names(
                portable=self.target == "portable",
                static=static,
                narrow=self.cache_type != "keep",
            )
        _check_order(names)
        return Pipeline([self._make(passes.load(name)) for name in names])

    def _make(self, kind: type[Pass]) -> Pass:
        mode, capacity = self.cache_mode()
        given: dict[str, dict[str, Any]] = {
            "choose_form": {
                "absorb": self.absorb,
                "prefill": self.prefill,
                "in_place": mode == "static",
            },
            "compress_cache": {"mode": mode},
            "narrow_cache": {"cache_type": self.cache_type},
            "write_cache_in_place": {"capacity": capacity},
        }
        return kind(**given.get(kind.name, {}))

    def as_dict(self) -> dict[str, object]:
        """The options, for a report."""
        return asdict(self)


def _check_order(names: Sequence[str]) -> None:
    """Built-in passes build on each other: each at most once, in their order; others anywhere."""
    places = list(passes.BUILT_IN)
    own = [name for name in names if name in passes.BUILT_IN]
    for before, after in pairwise(own):
        if places.index(before) >= places.index(after):
            raise InputError(
                f"passes: {after} cannot run after {before}; the order is {', '.join(places)}"
            )


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
