"""Whether two models are verified whole, or layer by layer.

By layer where memory is short, and where whole models say little: one that chooses, such as which
experts a token goes to, chooses others where a cache is rounded, and is then far from what it was.
And by layer where whole models cannot run alone: one rank's part of a model that several processes
share hands on sums to which the others add theirs. What it does between two sums it does alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.events import VerifyProgress
from mla_opt.files.room import available
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.programs.recognize import is_program, is_program_file
from mla_opt.verification.by_layer import verify_by_layer
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.onnx.sessions import ModelLike, open_model
from mla_opt.verification.oracle import optimized_driver, original_driver
from mla_opt.verification.precision import ROUNDED_TYPES
from mla_opt.verification.report import ParityReport
from mla_opt.verification.verifier import verify

Extent = Literal["auto", "whole", "by-layer"]

TIMES = 2
"""Bytes that verification takes for each of the weights of both models, at most: one model is open
at a time, and ONNX Runtime widens 16 bits to 32. What long prompts take is small beside it."""

COLLECTIVES = frozenset({"AllGather", "AllReduce", "AllToAll"})
"""Operators of ``com.microsoft`` by which the processes that share a model talk to each other."""

_CHOOSING = ("TopK", "ArgMax", "ArgMin", "NonZero", "Multinomial")


def checked(verify: bool | str) -> Extent | None:
    """What is asked for, ``None`` where nothing is to be verified.

    Raises:
        InputError: it is none of the words that there are.
    """
    if isinstance(verify, bool):
        return "auto" if verify else None
    if verify not in get_args(Extent):
        words = ", ".join(map(repr, get_args(Extent)))
        raise InputError(f"verify {verify!r} is none of True, False, {words}")
    return cast(Extent, verify)


def verify_as(
    extent: Extent,
    original: ModelLike,
    optimized: ModelLike,
    *,
    controls: bool = True,
    seed: int | None = None,
    progress: Callable[[VerifyProgress], None] | None = None,
) -> ParityReport:
    """Verify whole or by layer; with ``auto`` as the models and the memory have it.

    Raises:
        InputError: the models cannot be used, or do not fit and cannot be taken apart.
        VerificationError: the optimized model cannot be loaded.
    """
    given: dict[str, Any] = {"controls": controls, "seed": seed, "progress": progress}
    if extent == "by-layer":
        return verify_by_layer(original, optimized, **given)
    if extent == "whole" or any(is_program(m) or is_program_file(m) for m in (original, optimized)):
        return verify(original, optimized, **given)
    if InterfaceMap.of(open_model(optimized, "optimized").model).is_paged:
        return verify(original, optimized, **given)
    before, after = (open_model(each, "model").model for each in (original, optimized))
    shared = collectives(before)
    if shared:
        return _one_rank(original, optimized, shared, given)
    needed, room = TIMES * (_stored_bytes(before) + _stored_bytes(after)), available()
    short = room is not None and needed > room
    if not short and not (_rounds_cache(before, after) and _chooses(before)):
        return verify(original, optimized, **given)
    try:
        return verify_by_layer(original, optimized, **given)
    except InputError as error:
        if not short:
            return verify(original, optimized, **given)
        raise InputError(
            f"to verify both models whole takes about {needed / 1e9:.0f} GB of memory,"
            f" {(room or 0) / 1e9:.0f} GB are free, and layer by layer: {error}"
        ) from error


def collectives(model: ir.Model) -> tuple[str, ...]:
    """The types of the nodes by which a model takes part in a larger one, sorted."""
    nodes = (node for node in model.graph.all_nodes() if node.domain == "com.microsoft")
    return tuple(sorted({node.op_type for node in nodes} & COLLECTIVES))


def _one_rank(
    original: ModelLike, optimized: ModelLike, shared: tuple[str, ...], given: dict[str, Any]
) -> ParityReport:
    try:
        return verify_by_layer(original, optimized, **given)
    except InputError as error:
        raise InputError(
            f"the model is one rank of several ({', '.join(shared)}), so it cannot be run whole"
            f" here, and layer by layer: {error}"
        ) from error


def _stored_bytes(model: ir.Model) -> int:
    stored = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in stored if tensor is not None)


def _rounds_cache(original: ir.Model, optimized: ir.Model) -> bool:
    """Whether the optimized model keeps its caches in a type of fewer bits."""
    changes = InterfaceMap.of(optimized)
    before = original_driver(original, changes).interface
    after = optimized_driver(optimized, changes).interface
    return bool((_types(after) - _types(before)).intersection(ROUNDED_TYPES))


def _types(interface: ModelInterface) -> set[ir.DataType | None]:
    return {state.input.dtype for state in interface.states}


def _chooses(model: ir.Model) -> bool:
    """Whether a small difference can make it compute with other rows or other weights."""
    return any(node.op_type in _CHOOSING for node in model.graph.all_nodes())
