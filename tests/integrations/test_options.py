"""What tools offer as options is what the Python API takes."""

from __future__ import annotations

import inspect
import typing
from types import SimpleNamespace
from typing import Any

import mla_opt
from mla_opt.integrations.options import OPTIONS, chosen
from mla_opt.options import Options
from mla_opt.verification.extent import Extent

#: Not of JSON: the model, and a function.
NOT_OFFERED = {"model", "observer"}


def offered() -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(mla_opt.optimize).parameters
    return {name: each for name, each in parameters.items() if name not in NOT_OFFERED}


def test_every_option_of_optimize_is_offered_with_its_default() -> None:
    assert {name: each.default for name, each in OPTIONS.items()} == {
        name: each.default for name, each in offered().items()
    }


def test_the_values_of_an_option_are_those_of_optimize() -> None:
    taken = typing.get_type_hints(Options)
    for name, option in OPTIONS.items():
        if typing.get_origin(taken.get(name)) is typing.Literal:
            assert typing.get_args(option.kind) == typing.get_args(taken[name]), name
    verify = {value for part in typing.get_args(OPTIONS["verify"].kind) for value in values(part)}
    assert verify == {bool, *typing.get_args(Extent)}


def values(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) or (kind,)


def test_what_is_chosen_goes_into_optimize() -> None:
    given = {name: object() for name in OPTIONS}
    assert chosen(SimpleNamespace(other=3, **given)) == given
    inspect.signature(mla_opt.optimize).bind("model", **given)
