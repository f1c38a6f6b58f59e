"""What Dynamo notes on the placeholders of its graphs: whose tensors they are.

Its graphs take the parameters and buffers of the model as arguments, beside what a caller gives.
A backend is handed their values; they are noted on the placeholders as well, as long as it runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

_NOTES = ("grapharg", "tensor_dict")
_SELF = ("l_self", "l__self__", "l_fn", "self")


def own_tensors(
    module: fx.GraphModule, values: Sequence[Any] | None = None
) -> dict[str, torch.Tensor]:
    """The placeholders that stand for parameters and buffers of the model, by name.

    ``values`` are those of all placeholders, in order; what is noted, if they are not given.
    """
    places = module.graph.find_nodes(op="placeholder")
    given = [_noted(place) for place in places] if values is None else values
    return {
        place.name: value.detach() if not value.requires_grad else value
        for place, value in zip(places, given)
        if isinstance(value, torch.nn.Parameter) or _is_buffer(place, value)
    }


def numbers(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The placeholders of numbers of the model's own, such as a norm's epsilon, with their values.

    A graph may have been specialized to one of them; Dynamo compiles again when that changes.
    """
    noted = {place.name: place.meta.get("grapharg") for place in module.graph.nodes}
    return {
        name: torch.as_tensor(argument.example)
        for name, argument in noted.items()
        if getattr(argument, "pass_arg_as_tensor", False) and argument.example is not None
    }


def keep_notes(new: fx.Node, old: fx.Node) -> None:
    """Let a placeholder say of itself what the one says that it stands for."""
    new.meta.update({key: old.meta[key] for key in _NOTES if key in old.meta})


def attribute_path(name: str) -> str:
    """The path that a placeholder's name was made of, as far as it can be told.

    ``l_self_modules_layers_modules_0_parameters_weight_`` is ``layers.0.weight``.
    """
    words = re.split(r"_?(?:modules|parameters|buffers)_", name.strip("_"))
    return ".".join(words[1:]) if len(words) > 1 and words[0].lower() in _SELF else name


def _noted(place: fx.Node) -> Any:
    """The value that Dynamo traced with; None where nothing is noted, or it is gone."""
    try:
        return getattr(place.meta.get("grapharg"), "example", None)
    except AssertionError:  # Dynamo holds it weakly, and says so
        return None


def _is_buffer(place: fx.Node, value: Any) -> bool:
    """Whether Dynamo knows that a tensor is the model's own and keeps its place."""
    return isinstance(value, torch.Tensor) and bool(
        getattr(value, "_dynamo_static_input_type", None)
        or place.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    )
