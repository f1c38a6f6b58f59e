"""Options that several commands share, and the values they take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Target(StrEnum):
    """Which runtimes the optimized model is for."""

    ONNXRUNTIME = "onnxruntime"
    PORTABLE = "portable"


class Absorb(StrEnum):
    """What happens to W_UK and W_UV."""

    AUTO = "auto"
    FACTORED = "factored"
    FOLD_Q = "fold-q"
    FOLD_O = "fold-o"
    FOLD = "fold"
    NONE = "none"


class CacheType(StrEnum):
    """What the rows of a cache are rounded to."""

    KEEP = "keep"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Prefill(StrEnum):
    """The form for long queries."""

    AUTO = "auto"
    ABSORBED = "absorbed"
    EXPANDED = "expanded"


def parse_cache(text: str) -> str:
    """Check ``keep``, ``packed``, ``static`` or ``static:CAPACITY``; returns it as it is.

    Raises:
        typer.BadParameter: anything else, or a capacity that is no positive number.
    """
    kind, colon, capacity = text.partition(":")
    if kind not in ("keep", "packed", "static") or (colon and kind != "static"):
        raise typer.BadParameter(
            f"{text!r} is none of keep, packed, static, static:CAPACITY", param_hint="--cache"
        )
    if colon and not (capacity.isascii() and capacity.isdigit() and int(capacity) > 0):
        raise typer.BadParameter(
            f"the capacity in {text!r} must be a positive whole number", param_hint="--cache"
        )
    return text


def parse_passes(text: str | None) -> tuple[str, ...] | None:
    """Split the names of ``--passes``; ``None`` stands for the usual pipeline.

    Raises:
        typer.BadParameter: no name, or an empty one.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise typer.BadParameter("give names separated by commas", param_hint="--passes")
    return names


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX model, or a program that torch.export.save wrote (.pt2). Loading a program "
        "can run code that is in it: give only what you trust.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print details, and tracebacks of defects.")
]
