"""Options that several commands share, and the values they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from mla_opt.errors import InputError
from mla_opt.option_text import parse_cache, parse_count

Value = TypeVar("Value")


class Target(StrEnum):
    """Which runtimes the optimized model is for."""

    ONNXRUNTIME = "onnxruntime"
    PORTABLE = "portable"
    ONNXRUNTIME_PAGED = "onnxruntime-paged"


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
    INT8 = "int8"
    FP8 = "fp8"


class Weights(StrEnum):
    """What becomes of the bits of W_UK and W_UV."""

    AUTO = "auto"
    FLOAT = "float"
    KEEP = "keep"


class MatmulNbits(StrEnum):
    """Who runs MatMulNBits."""

    KEEP = "keep"
    KERNEL = "kernel"


class WeightsFiles(StrEnum):
    """Where the weights of the result are, as far as they are those of the model."""

    COPY = "copy"
    SHARE = "share"


class Prefill(StrEnum):
    """The form for long queries."""

    AUTO = "auto"
    ABSORBED = "absorbed"
    EXPANDED = "expanded"


Kind = TypeVar("Kind", bound=StrEnum)


def choice(kind: type[Kind]) -> Callable[[str], Kind]:
    """Return what reads an option that names one of a few things.

    Option parsers are ours: those of the option library put its own words into their errors.
    """

    def parse(value: str) -> Kind:
        try:
            return kind(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(kind)}") from None

    return parse


def names(kind: type[StrEnum]) -> str:
    """Return how the help shows the values of such an option."""
    return f"[{'|'.join(kind)}]"


def count(least: int = 1) -> Callable[[str], int]:
    """Return what reads an option that is a whole number; 8k is 8192."""

    def parse(value: str) -> int:
        # What is no text is the option's default.
        return value if isinstance(value, int) else _read(parse_count, value, least)

    return parse


def number(least: float = 0) -> Callable[[str], float]:
    """Return what reads an option that is a number."""

    def parse(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is no number") from None
        if not least <= found < math.inf:
            raise typer.BadParameter(f"{value!r} is too {'small' if found < least else 'large'}")
        return found

    return parse


def cache(value: str) -> str:
    """Check ``keep``, ``packed``, ``even``, ``static`` or ``static:ROWS``; returns it as it is.

    Raises:
        typer.BadParameter: anything else.
    """
    _read(parse_cache, value)
    return value


def _read(parse: Callable[..., Value], *arguments: object) -> Value:
    try:
        return parse(*arguments)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


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
ModelOrFolder = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX model, a program that torch.export.save wrote (.pt2), or a folder of optimum,"
        " transformers.js, transformers' exporters or onnxruntime-genai. Loading a program can run "
        "code that is in it: give only what you trust.",
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", parser=count(), metavar="N", help="B: sequences at a time.")
]
Query = Annotated[
    int, typer.Option("--query", parser=count(), metavar="N", help="S: new tokens of a call.")
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        parser=count(),
        metavar="N",
        help="T: tokens in sight, new ones included; 8k is 8192.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print details, and tracebacks of defects.")
]


def check_workload(query: int, context: int) -> None:
    """Check that a context holds the new tokens, too.

    Raises:
        typer.BadParameter: it does not.
    """
    if context < query:
        raise typer.BadParameter(
            f"{context} counts the new tokens too: it is at least --query {query}",
            param_hint="--context",
        )
