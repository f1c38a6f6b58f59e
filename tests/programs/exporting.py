"""Programs of torch.export for the tests: made once per process and kept."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from tests.exports.controls import CONTROLS, GENUINE
from tests.exports.exporters import _dynamic_shapes, example_inputs, flat_model
from tests.exports.families import FAMILIES
from tests.exports.feeds import past_feeds, token_feeds
from tests.exports.flat import FlatCausalLM
from tests.exports.patches import patches_for
from tests.exports.spec import ExportSpec

#: Batch, new tokens and past; the last two take the expanded branch and begin without a past.
SIZES = ((2, 5, 11), (1, 1, 7), (3, 1, 20), (1, 60, 4), (2, 6, 0))
STATELESS = ((2, 5, 0), (1, 9, 0), (3, 40, 0))


@functools.cache
def model(
    family: str, attention: str = "sdpa", cache: bool = True, dtype: str = "float32"
) -> FlatCausalLM:
    return flat_model(ExportSpec(family, attention=attention, cache=cache, dtype=dtype))


@functools.cache
def program(
    family: str, attention: str = "sdpa", cache: bool = True, dtype: str = "float32"
) -> torch.export.ExportedProgram:
    flat = model(family, attention, cache, dtype)
    return exported(flat, family, dtype)


def exported(flat: FlatCausalLM, family: str, dtype: str) -> torch.export.ExportedProgram:
    with torch.no_grad(), patches_for(FAMILIES[family].model_type):
        return torch.export.export(flat, _inputs(flat, dtype), dynamic_shapes=_dynamic_shapes(flat))


@functools.cache
def control(name: str) -> torch.export.ExportedProgram:
    """A model without latent attention, or the block that near misses of it are near to."""
    module: Any = (GENUINE if name == GENUINE.name else CONTROLS[name]).build()
    if isinstance(module, FlatCausalLM):
        return exported(module, "deepseek_v3", "float32")
    given = module.example(2, 7)
    axes = [module.dynamic.get(place, ()) for place in range(len(given))]
    shapes = tuple(dict.fromkeys(some, torch.export.Dim.AUTO) for some in axes)
    with torch.no_grad():
        return torch.export.export(module, given, dynamic_shapes=shapes)


def _inputs(flat: FlatCausalLM, dtype: str) -> tuple[torch.Tensor, ...]:
    kept = dtype if dtype != "bfloat16" else "float32"
    return _cast(example_inputs(flat, kept), dtype)


def arguments(
    flat: FlatCausalLM, sizes: tuple[int, int, int], dtype: str = "float32"
) -> tuple[torch.Tensor, ...]:
    """Arguments for B, S and P, row 0 padded on the left."""
    batch, query, past = sizes
    feeds = token_feeds(batch, query, past, left_padding=min(2, past), vocab=97, seed=3)
    feeds |= past_feeds(flat.layout, batch, past, dtype="float32", seed=1)
    return _cast(tuple(torch.from_numpy(feeds[name]) for name in flat.input_names), dtype)


def _cast(tensors: tuple[torch.Tensor, ...], dtype: str) -> tuple[torch.Tensor, ...]:
    kind = getattr(torch, dtype)
    return tuple(each.to(kind) if each.is_floating_point() else each for each in tensors)


def error(one: Any, other: Any) -> float:
    """The largest difference, relative to the spread of each output."""
    with torch.no_grad():
        pairs = [(a.float(), b.float()) for a, b in zip(one, other, strict=True)]
        assert all(a.shape == b.shape for a, b in pairs)
        return max(float((a - b).abs().max() / a.std()) for a, b in pairs if a.numel())


def typical_errors(flat: FlatCausalLM, candidate: Any, dtype: str) -> tuple[float, float]:
    """Median error of a token's logits in 16 bits, to the same model in float32.

    Of the candidate and of the model itself. A rounding that sends a token to another expert, or
    another token out of a sparse attention's choice, changes that token's logits wholly, in either
    of them: the largest error says nothing.
    """
    wide = copy.deepcopy(flat).float()
    errors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for sizes in SIZES if flat.layout else STATELESS:
        given = arguments(flat, sizes, dtype)
        with torch.no_grad():
            truth = wide(*(each.float() if each.is_floating_point() else each for each in given))[0]
            for found, model in zip(errors, (candidate, flat)):
                apart = (model(*given)[0].float() - truth).square().mean(-1).sqrt() / truth.std()
                found.append(apart.flatten())
    of_candidate, of_model = (float(torch.cat(each).median()) for each in errors)
    return of_candidate, of_model


def worst_error(
    flat: FlatCausalLM,
    candidate: Any,
    sizes: tuple[tuple[int, int, int], ...] | None = None,
) -> float:
    """How far a callable is from the model itself, over several sizes."""
    errors = []
    for each in sizes or (SIZES if flat.layout else STATELESS):
        given = arguments(flat, each)
        with torch.no_grad():
            errors.append(error(flat(*given), candidate(*given)))
    return max(errors)
