"""What `mla-opt export` makes, by the options that choose it, and which options are for which."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import typer


class Destination(StrEnum):
    """What is made."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"
    TRITON_SERVER = "triton-server"


class Precision(StrEnum):
    """The type of products and caches."""

    AUTO = "auto"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Runtime(StrEnum):
    """Which TensorRT builds."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


class Mode(StrEnum):
    """The ways to export, by the options that choose them."""

    TENSORRT = "--runtime tensorrt"
    RTX = "--runtime rtx"
    ONNX_ONLY = "--onnx-only"
    BUNDLE = "--to onnxruntime"
    SERVER = "--to triton-server"


_BUILDS = frozenset({Mode.TENSORRT, Mode.RTX})
_LOWERS = frozenset({*_BUILDS, Mode.ONNX_ONLY})
_BUNDLES = frozenset({Mode.BUNDLE})
_SERVES = frozenset({Mode.SERVER})
#: The modes in which an option does something. An option that would do nothing is refused.
WORKS_IN: dict[str, frozenset[Mode]] = {
    "model": frozenset(Mode),
    "output": frozenset(Mode),
    "to": frozenset(Mode),
    "force": frozenset(Mode),
    "quiet": frozenset(Mode),
    "verbose": frozenset(Mode),
    "name": _SERVES,
    "server_path": _SERVES,
    "instances": _SERVES,
    "cache_type": _BUNDLES,
    "rows": _LOWERS | _BUNDLES,
    "batch": _LOWERS,
    "prompt": _LOWERS,
    "step": _LOWERS,
    "context": _LOWERS,
    "precision": _LOWERS,
    "verify": _LOWERS | _BUNDLES,
    "no_plugin": _LOWERS,
    "onnx_only": frozenset({Mode.ONNX_ONLY}),
    "runtime": _BUILDS,
    "plugin": _BUILDS,
    "embed_plugin": _BUILDS,
    "timing_cache": _BUILDS,
    "sm": frozenset({Mode.RTX}),
}


def mode_of(to: Destination, runtime: Runtime, onnx_only: bool) -> Mode:
    """What the options that choose a mode choose."""
    if to is Destination.TRITON_SERVER:
        return Mode.SERVER
    if to is Destination.ONNXRUNTIME:
        return Mode.BUNDLE
    if onnx_only:
        return Mode.ONNX_ONLY
    return Mode.RTX if runtime is Runtime.RTX else Mode.TENSORRT


def given(command: typer.Context) -> list[str]:
    """The parameters that were typed, rather than left as they are."""
    names = (str(each.name) for each in command.command.params)
    sources = ((name, command.get_parameter_source(name)) for name in names)
    return [name for name, source in sources if source is not None and "DEFAULT" not in source.name]


def refuse_needless(given: Iterable[str], mode: Mode) -> None:
    """Raise `InputError` for an option that would do nothing."""
    from mla_opt.errors import InputError

    for name in given:
        if mode not in WORKS_IN[name]:
            others = _works_with(name, mode)
            raise InputError(
                f"--{name.replace('_', '-')} does nothing with {mode.value}; it is for {others}."
                " Leave it out"
            )


def _works_with(name: str, mode: Mode) -> str:
    """What an option is for, told to someone who has chosen ``mode``."""
    modes = [each for each in Mode if each in WORKS_IN[name]]
    if mode in _LOWERS:
        return " and ".join(modes)
    # Someone who does not make engines does not want to know which ways there are to do so.
    others = [each for each in modes if each not in _LOWERS]
    engines = ["--to tensorrt"] if len(others) < len(modes) else []
    return " and ".join([*engines, *others])
